"""``harness export``: a finished trial as a model that other programs load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli.results import open_results, read_record, results_option
from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.planning.registry import Registry

BEST = "best"


@click.command()
@click.argument("trial_id", metavar="TRIAL_ID|best")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to write; new or empty.")
@click.option(
    "--format", "form", type=click.Choice(["merged", "peft", "auto"]), default="merged",
    show_default=True,
    help="The whole fine-tuned model, the update as a LoRA checkpoint of PEFT, or that where there is one.",
)  # fmt: skip
@click.option("--rank", type=click.IntRange(min=1), help="Cut the update to this rank (--format peft).")
@click.option("--task", default="", metavar="NAME", help="Of which task the best, where there are records of several.")
@results_option
@click.pass_obj
def export(
    block: tuple[str, ...], /, trial_id: str, output: Path, form: str, rank: int | None, task: str, results: str
) -> None:
    """Write a finished trial as a model that other programs load.

    `best` is the trial that `harness recommend` names.
    """
    from transformers.utils.logging import disable_progress_bar

    from harness.planning.registry import build_registry
    from harness.results.export import export_merged, export_peft, loading_code, read_trained

    if rank is not None and form == "merged":
        raise UsageError(f"--rank {rank} cuts the update of --format peft; --format {form} keeps all of it")
    if task and trial_id != BEST:
        raise UsageError(
            f"--task {task}: {trial_id!r} names one trial already; --task belongs to `harness export best`"
        )
    disable_progress_bar()  # type: ignore[no-untyped-call]
    registry = build_registry(block)
    if trial_id == BEST:
        trial_id = best_trial(registry, results, task)
    trained = read_trained(registry, *read_record(results, trial_id))
    if form != "merged":
        try:
            click.echo(export_peft(trained, output, rank), err=True)
            form = "peft"
        except UsageError as error:
            if form == "peft":
                raise
            click.echo(f"no PEFT checkpoint: {error}. So the whole model is written.", err=True)
            form = "merged"
    if form == "merged":
        export_merged(trained, output)
    click.echo(f"trial {trained.trial.id} ({trained.trial.label}) -> {output}", err=True)
    click.echo(loading_code(trained, output, form))


def best_trial(registry: Registry, results: str, task: str) -> str:
    """Return the id of the trial that a plug-in recommends.

    Raises:
        UsageError: Nothing recommends any.
    """
    records = [each for each in open_results(results).records() if task in ("", each.trial.task)]
    if not records:
        raise UsageError(f"no records of task {task!r} in {results!r}; `harness results list` shows what there is")
    found: list[str] = registry.hook.harness_best_trial(records=records)
    if not found:
        raise UsageError("no plug-in says which trial is best; give a trial's id (`harness results list`)")
    return found[0]
