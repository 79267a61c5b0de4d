"""``harness data``: are the tables that tasks read there?"""

from __future__ import annotations

import json
from pathlib import Path

import click

from harness.cli.options import data_dir_option, expand_tasks


@click.group()
def data() -> None:
    """Data of the tasks."""


@data.command("check")
@click.option("--tasks", "--task", metavar="NAMES", help="Comma-separated task names.  [default: all]")
@click.option("--scale", default="smoke", show_default=True, help="Whose recipe's tables: smoke, small or paper.")
@data_dir_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def data_check(block: tuple[str, ...], tasks: str | None, scale: str, data_dir: Path | None, as_json: bool) -> int:
    """Say which tables the tasks read, which are there, and what to do about the others. Downloads nothing."""
    from harness.data.check import check_data, findings_json, findings_table
    from harness.planning.plan import split_names
    from harness.planning.registry import build_registry

    registry = build_registry(block)
    names = expand_tasks(split_names(tasks), registry) if tasks else list(registry.tasks)
    findings = check_data({name: registry.task(name) for name in names}, scale, data_dir)
    click.echo(json.dumps(findings_json(findings), indent=1) if as_json else findings_table(findings))
    return 1 if any(each.blocks for each in findings) else 0
