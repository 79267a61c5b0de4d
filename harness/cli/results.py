"""``harness results``: records listed, shown, exported as a table; and how commands find the records they are about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.contract.record import Record
    from harness.results.store import Store

results_option = click.option(
    "--results", default="results", show_default=True, envvar="HARNESS_RESULTS", metavar="URL", help="Result root."
)


def open_results(root: str) -> Store:
    """Return a result root; one without any record is a usage error."""
    from harness.results.store import Store

    store = Store(root)
    if not store.ids():
        raise UsageError(
            f"no records in {root!r}; run something first (`harness run --methods all --task uuid`), or give --results"
        )
    return store


def read_records(root: str) -> tuple[Store, list[Record]]:
    """Return a result root with all its records; what is none is warned of, and a root of nothing else is refused."""
    from harness.results.index import read_all

    store = open_results(root)
    records = read_all(store)
    if not records:
        raise none_readable(root)
    return store, records


def none_readable(root: str) -> UsageError:
    """Return the error of a root whose records cannot be read, each of which was warned of."""
    return UsageError(f"none of the records in {root!r} can be read; give another --results")


def read_record(root: str, start: str) -> tuple[Store, Record]:
    """Return the one record whose id begins so."""
    store = open_results(root)
    found = [trial_id for trial_id in store.ids() if trial_id.startswith(start)]
    record = store.read(found[0]) if len(found) == 1 else None
    if record is None:
        raise UsageError(f"{len(found)} records in {root!r} begin with {start!r}; `harness results list` shows the ids")
    return store, record


@click.group()
def results() -> None:
    """List, show and export records."""


@results.command("list")
@results_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def results_list(results: str, as_json: bool) -> None:
    """Show one line per record."""
    from harness.results.frame import frame, render_list

    _, records = read_records(results)
    click.echo(frame(records).to_json(orient="records", date_format="iso") if as_json else render_list(records))


@results.command("show")
@click.argument("trial_id")
@results_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def results_show(trial_id: str, results: str, as_json: bool) -> None:
    """Show one record; the first characters of the id are enough."""
    from harness.results.frame import render_show

    record = read_record(results, trial_id)[1]
    click.echo(json.dumps(record.to_json(), indent=1) if as_json else render_show(record))


@results.command("export")
@click.argument("path", type=click.Path(path_type=Path))
@results_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def results_export(path: Path, results: str, as_json: bool) -> None:
    """Write all records as a table: .csv, .parquet or .json."""
    from harness.results.frame import export

    count = export(read_records(results)[1], path)
    if as_json:
        click.echo(json.dumps({"records": count, "path": str(path)}, indent=1))
    else:
        click.echo(f"{count} records -> {path}", err=True)


@results.command("describe")
@results_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def results_describe(block: tuple[str, ...], results: str, as_json: bool) -> None:
    """Keep beside the records what their methods and tasks are, for pages that are made without the plugins."""
    from harness.planning.registry import build_registry
    from harness.results.catalogue import write_catalogue

    store, records = read_records(results)
    trials = [record.trial for record in records]
    write_catalogue(store, build_registry(block), trials)
    names = sorted({trial.method for trial in trials} | {trial.task for trial in trials})
    if as_json:
        click.echo(json.dumps({"root": store.root, "described": names}, indent=1))
    else:
        click.echo(f"described in {store.root}: {', '.join(names)}", err=True)
