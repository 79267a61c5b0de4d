"""``harness export``: a finished trial as a model that other programs load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.results import read_record, read_records, results_option
from harness.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.contract.record import Record
    from harness.engine.trained import TrainedTrial
    from harness.planning.registry import Registry
    from harness.results.store import Store

BEST = "best"


@click.command()
@click.argument("trial_id", metavar="TRIAL_ID|best")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to write; new or empty.")
@click.option(
    "--format", "form", type=click.Choice(["merged", "peft", "own", "auto"]), default="merged",
    show_default=True,
    help="The whole fine-tuned model, the update as a checkpoint of PEFT, the files of a method that writes its own, "
    "or the smallest of these that there is.",
)  # fmt: skip
@click.option("--rank", type=click.IntRange(min=1), help="Cut the update to this rank (--format peft).")
@click.option("--task", default="", metavar="NAME", help="Of which task the best, where there are records of several.")
@results_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def export(
    block: tuple[str, ...], /, trial_id: str, output: Path, form: str, rank: int | None, task: str, results: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Write a finished trial as a model that other programs load.

    `best` is the trial that `harness recommend` names.
    """
    from harness.planning.registry import build_registry

    if rank is not None and form in ("merged", "own"):
        raise UsageError(f"--rank {rank} cuts the update of --format peft; --format {form} keeps all of it")
    if task and trial_id != BEST:
        raise UsageError(
            f"--task {task}: {trial_id!r} names one trial already; --task belongs to `harness export best`"
        )
    registry = build_registry(block)
    if trial_id == BEST:
        trial_id = best_trial(registry, results, task)
    told = write(registry, *read_record(results, trial_id), output, form, rank)
    if as_json:
        click.echo(json.dumps(told, indent=1))
        return
    for each in told["notes"]:
        click.echo(each, err=True)
    click.echo(told["code"])


def write(
    registry: Registry, store: Store, record: Record, output: Path, form: str = "auto", rank: int | None = None
) -> dict[str, Any]:
    """Write a finished trial, and return what was written, what must be known of it, and code that loads it."""
    from transformers.utils.logging import disable_progress_bar

    from harness.results.export import loading_code, read_trained, readable, whole_or_nothing

    disable_progress_bar()  # type: ignore[no-untyped-call]
    trained = read_trained(registry, store, record)
    with whole_or_nothing(output):
        form, notes = _write(trained, output, rank, form)
    readable(output)
    if form == "peft":
        from harness.results.vllm import vllm_verdict

        notes.append(vllm_verdict(output))
    notes.append(f"trial {trained.trial.id} ({trained.trial.label}) -> {output}")
    return {
        "trial_id": trained.trial.id, "folder": str(output), "format": form, "notes": notes,
        "code": loading_code(trained, output, form),
    }  # fmt: skip


def _write(trained: TrainedTrial, output: Path, rank: int | None, form: str) -> tuple[str, list[str]]:
    """Write a trial in a format, or in the smallest that there is; return the format and what must be known of it."""
    from harness.results.export import export_merged, export_own, export_peft, is_peft

    why: list[str] = []
    if form == "own" or (form == "auto" and trained.is_private):
        try:
            note = export_own(trained, output)
            return "peft" if is_peft(output) else "own", [note]
        except UsageError as error:
            if form == "own":
                raise
            why = [f"{error}. So the whole model is written."]
    elif form != "merged":
        try:
            return "peft", [export_peft(trained, output, rank)]
        except UsageError as error:
            if form == "peft":
                raise
            why = [f"no PEFT checkpoint: {error}. So the whole model is written."]
    export_merged(trained, output)
    return "merged", why


def best_trial(registry: Registry, results: str, task: str) -> str:
    """Return the id of the trial that a plug-in recommends.

    Raises:
        UsageError: Nothing recommends any.
    """
    records = [each for each in read_records(results)[1] if task in ("", each.trial.task)]
    if not records:
        raise UsageError(f"no records of task {task!r} in {results!r}; `harness results list` shows what there is")
    return best_of(registry, records)


def best_of(registry: Registry, records: Sequence[Record]) -> str:
    """Return the id of the trial that a plug-in recommends among some.

    Raises:
        UsageError: Nothing recommends any.
    """
    found: list[str] = registry.hook.harness_best_trial(records=records)
    if not found:
        raise UsageError("no plug-in says which trial is best; give a trial's id (`harness results list`)")
    return found[0]
