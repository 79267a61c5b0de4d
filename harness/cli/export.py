"""``harness export``: a finished trial as a model that other programs load."""

from __future__ import annotations

from pathlib import Path

import click

from harness.cli.results import read_record, results_option
from harness.errors import UsageError


@click.command()
@click.argument("trial_id")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to write; new or empty.")
@click.option(
    "--format", "form", type=click.Choice(["merged", "peft"]), default="merged", show_default=True,
    help="The whole fine-tuned model, or the update as a LoRA checkpoint of PEFT.",
)  # fmt: skip
@click.option("--rank", type=click.IntRange(min=1), help="Cut the update to this rank (--format peft).")
@results_option
@click.pass_obj
def export(block: tuple[str, ...], /, trial_id: str, output: Path, form: str, rank: int | None, results: str) -> None:
    """Write a finished trial as a model that other programs load."""
    from transformers.utils.logging import disable_progress_bar

    from harness.planning.registry import build_registry
    from harness.results.export import export_merged, export_peft, read_trained

    if rank is not None and form != "peft":
        raise UsageError(f"--rank {rank} cuts the update of --format peft; --format {form} keeps all of it")
    disable_progress_bar()  # type: ignore[no-untyped-call]
    registry = build_registry(block)
    trained = read_trained(registry, *read_record(results, trial_id))
    if form == "merged":
        export_merged(trained, output)
    else:
        click.echo(export_peft(trained, output, rank))
    click.echo(f"trial {trained.trial.id} ({trained.trial.label}) -> {output}", err=True)
