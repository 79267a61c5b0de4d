"""``harness analyse``: what training did to the weights, or what a base model's weights are like."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from harness.cli.results import read_record, results_option
from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.contract.analysis import LayerChange
    from harness.planning.registry import Registry
    from harness.results.findings import Findings


@click.command()
@click.argument("name", metavar="NAME[:SETTINGS]")
@click.argument("trial_ids", nargs=-1, metavar="[TRIAL_ID]...")
@click.option("--task", help="Instead of trials: the task whose base model to look at.")
@click.option("--model", help="Another base model than the task's.")
@click.option("--figure", "picture", type=click.Path(path_type=Path), help="Draw the curves (.svg, .png).")
@click.option("--json", "as_json", is_flag=True, help="Print the findings of every layer as JSON.")
@results_option
@click.pass_obj
def analyse(
    block: tuple[str, ...], /, name: str, trial_ids: tuple[str, ...], task: str | None, model: str | None,
    picture: Path | None, as_json: bool, results: str,
) -> None:  # fmt: skip
    """Measure the weights of finished trials, or of a base model. `harness list analyses` shows what there is.

    The findings are kept beside the records, in analyses/.
    """
    from transformers.utils.logging import disable_progress_bar

    from harness.planning.registry import build_registry
    from harness.planning.settings import read_settings
    from harness.results import findings as room
    from harness.results.analysis import analyse as look
    from harness.results.figure import check_figure, figure
    from harness.results.store import Store

    disable_progress_bar()  # type: ignore[no-untyped-call]
    registry = build_registry(block)
    plain, _, settings = name.partition(":")
    kind = registry.analysis(plain)
    analysis = kind(kind.Config(**read_settings(settings, kind)))
    if kind.of_updates and not trial_ids:
        raise UsageError(f"analysis {plain!r} looks at trials; name some, `harness results list` shows their ids")
    if bool(trial_ids) == bool(task):
        raise UsageError("name trials, or give --task (and --model) to look at a base model")
    if model and not task:
        raise UsageError(f"--model {model}: trials are looked at on the model that they trained; leave it out")
    if picture:
        check_figure(picture)
    several: list[Findings] = []
    for subject, layers in _subjects(registry, results, trial_ids, task, model, kind.of_updates):
        several.append(look(analysis, layers, subject))
        where = room.write(several[-1], Store(results), asdict(kind.Config()))
        click.echo(f"{several[-1].name} -> {where}", err=True)
    click.echo(json.dumps([each.to_json() for each in several]) if as_json else room.table(several))
    if not as_json and kind.claim:
        click.echo(f"\nThe paper says: {kind.claim} ({kind.paper})")
    if picture:
        figure(several, picture)


def _subjects(
    registry: Registry, results: str, trial_ids: tuple[str, ...], task: str | None, model: str | None, of_updates: bool
) -> Iterator[tuple[dict[str, str], Iterator[LayerChange]]]:
    """Yield what is looked at, and its layers."""
    from harness.results.export import read_trained

    seen = set()
    for trial_id in trial_ids:
        trained = read_trained(registry, *read_record(results, trial_id))
        trial = trained.trial
        base = {"model": trial.model, "model_revision": trial.model_revision}
        if of_updates:
            yield {"trial_id": trial.id, "label": trial.label, **base}, trained.changes()
        elif trial.model_revision not in seen:
            seen.add(trial.model_revision)
            yield base, _layers_of(trained.model)
    if task is not None:
        import torch

        from harness.engine.model import choose_model, load_model

        chosen = registry.task(task)()
        recipe = next(iter(chosen.recipes.values()))
        choice = choose_model(model or chosen.model, None, chosen, recipe)
        loaded, _ = load_model(choice, chosen, recipe, "float32", torch.device("cpu"))
        yield {"model": choice.name, "model_revision": str(choice.revision)}, _layers_of(loaded)


def _layers_of(model: object) -> Iterator[LayerChange]:
    """Yield the linear layers of a base model."""
    from harness.contract.analysis import LayerChange
    from harness.engine.layers import linear_layers, present_as_linear

    for name in linear_layers(cast(Any, model), ()):
        yield LayerChange(name, present_as_linear(cast(Any, model).get_submodule(name)).weight.detach().float())
