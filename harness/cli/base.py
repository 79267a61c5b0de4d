"""``harness base``: the base models that come with the package."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import click


@click.group()
def base() -> None:
    """Shipped base models."""


@base.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def base_list(as_json: bool) -> None:
    """List the shipped base models."""
    from harness.bases import shipped_bases

    if as_json:
        click.echo(json.dumps({name: str(path) for name, path in shipped_bases().items()}, indent=1))
        return
    for name, path in shipped_bases().items():
        click.echo(f"{name}  {path}")


@base.command("build")
@click.argument("name")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write.  [default: ./NAME]")
@click.option("--steps", type=int, help="Fewer steps than the recipe's, to try it out.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def base_build(name: str, output: Path | None, steps: int | None, device: str, as_json: bool) -> None:
    """Train a shipped base model again from text that every machine has, and compare it with the shipped one."""
    from harness.bases import shipped_bases
    from harness.planning.registry import unknown_name
    from harness.running.devices import resolve_devices

    if name not in shipped_bases():
        raise unknown_name("shipped base model", name, shipped_bases())
    build = import_module(f"harness.bases.{name}.build").build
    report = build(
        output or Path(name),
        device=resolve_devices(device, 1)[0][0],
        **({} if steps is None else {"steps": steps}),
        report=lambda line: click.echo(line, err=as_json),
    )
    click.echo(json.dumps(asdict(report), indent=1, default=str) if as_json else str(report))
