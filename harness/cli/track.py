"""``harness track``: trackers are views of the records, and can be made again from them."""

from __future__ import annotations

import json

import click

from harness.cli.exit_codes import TRACKING_INCOMPLETE
from harness.cli.results import none_readable, open_results, results_option


@click.group()
def track() -> None:
    """Tracking: views of the records elsewhere."""


@track.command("rebuild")
@results_option
@click.option("--json", "as_json", is_flag=True, help="Print what was told as JSON.")
@click.pass_obj
def track_rebuild(block: tuple[str, ...], results: str, as_json: bool) -> int:
    """Tell the trackers about every record again. What they know already stays as it is."""
    from harness.planning.registry import build_registry
    from harness.running.observers import Observers

    registry = build_registry(block)
    store = open_results(results)
    records = list(store.records())
    if not records:
        raise none_readable(results)
    observers = Observers(registry)
    for record in records:
        environment = {**record.environment, "results_root": store.root}
        observers.call("harness_trial_started", trial=record.trial, environment=environment)
        observers.call("harness_trial_finished", trial=record.trial, record=record)
    observers.call("harness_sweep_finished")
    if as_json:
        told = {"results": store.root, "records": len(records), "failures": observers.failures}
        click.echo(json.dumps(told, indent=1))
    else:
        click.echo(f"{len(records)} records told to the trackers", err=True)
    return TRACKING_INCOMPLETE if observers.failures else 0
