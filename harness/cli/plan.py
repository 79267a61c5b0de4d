"""``harness plan``: what a run would do, without doing it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from harness.cli.options import build_suite_from_options, shard_option, suite_options

if TYPE_CHECKING:
    from harness.contract.looks import Looks
    from harness.contract.task import Metric
    from harness.contract.trial import Trial
    from harness.planning.registry import Registry
    from harness.planning.search import Cell


@click.command()
@suite_options
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@shard_option
@click.option("--json", "as_json", is_flag=True, help="Print the trials as JSON.")
@click.pass_obj
def plan(block: tuple[str, ...], /, device: str, as_json: bool, shard: int, **options: Any) -> None:
    """Show what a run would do: trials, settings, counts and what is finished. Loads no weights."""
    from harness.planning.registry import build_registry
    from harness.results.store import Store
    from harness.running.devices import resolve_devices, resolve_precision
    from harness.running.sweep import plan_sweep

    registry = build_registry(block)
    suite, data_dir = build_suite_from_options(registry, options)
    precision = resolve_precision(suite.precision, resolve_devices(device, 0)[0][0])
    store = Store(options["results"])
    cells, trials, states = plan_sweep(suite, registry, data_dir, precision, store, shard)
    if as_json:
        click.echo(json.dumps([{"id": t.id, "state": states[t.id], **t.to_json()} for t in trials], indent=1))
        return
    click.echo(plan_table(cells, trials, states, registry))
    tasks = {trial.task: registry.task(trial.task) for trial in trials}
    metrics = {name: task.metrics[task.main_metric] for name, task in tasks.items()}
    reports = [cell.trial(rate, seed, "report") for cell in cells for rate in cell.rates for seed in cell.seeds]
    complete = [record for each in trials if states[each.id] == "complete" and (record := store.read(each.id))]
    if suite.looks is not None:
        click.echo(looks_text(suite.looks, cells, metrics))
    for text in registry.hook.harness_forecast(trials=reports, records=complete, metrics=metrics):
        click.echo(text)


def looks_text(looks: Looks, cells: Sequence[Cell], metrics: Mapping[str, Metric]) -> str:
    """Return when a run looks whether its methods are told apart, and how many trials it has at most."""
    *earlier, last = map(str, looks.counts)
    parts = ", ".join(f"{100 * share:.0f} %" for share in looks.shares)
    return (
        f"Looks after {', '.join(earlier)} and {last} seeds, with {parts} of the level; seeds are added while two "
        f"methods are not told apart and may differ by {looks.size_text(m.unit for m in metrics.values())}. At most "
        f"{sum(each.most_trials(len(looks.seeds)) for each in cells)} trials."
    )


def plan_table(
    cells: Sequence[Cell],
    trials: Sequence[Trial],
    states: Mapping[str, str],
    registry: Registry,
) -> str:
    """Return the trials of a plan as text.

    Args:
        cells: Of the sweep.
        trials: All that are known to be needed.
        states: By trial id.
        registry: Has the methods' defaults; only settings that differ from them are shown.
    """
    from tabulate import tabulate

    from harness.results.wording import layers_text, parameters_text, rate_text, settings_text

    defaults = {name: asdict(registry.method(name).Config()) for name in {trial.method for trial in trials}}
    smallest: dict[str, int] = {}
    for trial in trials:
        if trial.budget_parameters is not None and not trial.is_matched:
            smallest[trial.task] = min(trial.adapter_parameters, smallest.get(trial.task, trial.adapter_parameters))
    rows = []
    for trial in trials:
        asked, deviation_fraction = trial.budget_parameters, trial.budget_deviation_fraction
        steps = trial.recipe["steps"] if trial.recipe["steps"] != "auto" else f"{trial.recipe['epochs']:g} epochs"
        settings = "; ".join(
            filter(None, (settings_text(trial.config, defaults[trial.method]), layers_text(trial.layer_settings)))
        )
        if asked is None:
            deviation = "reference"
        elif deviation_fraction is not None:
            deviation = f"{deviation_fraction:+.2%}" + ", its largest" * trial.largest
        else:
            deviation = f"{trial.adapter_parameters / smallest[trial.task]:.2f} x smallest"
        rows.append(
            [trial.task, trial.method, parameters_text(trial), deviation, steps, rate_text(_rate(trial, registry)),
             trial.seed, trial.purpose, trial.id, states[trial.id], settings]
        )  # fmt: skip
    heads = ["task", "method", "parameters", "vs budget", "steps", "lr", "seed", "purpose", "id", "state", "settings"]
    todo = sum(state in ("to do", "interrupted") for state in states.values())
    other = sum(state not in ("to do", "interrupted", "complete", "diverged") for state in states.values())
    again = f", {other} that did not finish (tried again when something changed, or by `harness run --retry`)"
    budgets = ", ".join(dict.fromkeys(each.template.budget for each in cells if each.template.budget)) or "none"
    models = ", ".join(dict.fromkeys(trial.model for trial in trials))
    kept = " and ".join(dict.fromkeys(f"{trial.precision}{_quantised(trial)}" for trial in trials))
    where = f"model {models}, {kept}, budget {budgets}"
    more = " (more follow once the search has chosen)" if any(c.searches for c in cells) else ""
    count = f"{len(trials)} trials, {todo} to do{again if other else ''}{more}"
    table = tabulate(rows, heads, disable_numparse=True)
    if smallest:
        count += "\nBudget own: every method has the size that its own settings give; this is no matched comparison."
    notes = dict.fromkeys(note for cell in cells for note in cell.notes)
    return "\n".join([where, table, count, *notes])


def _rate(trial: Trial, registry: Registry) -> float | None:
    trains = registry.method(trial.method).traits.trains or registry.task(trial.task).trains
    return trial.learning_rate if trains else None


def _quantised(trial: Trial) -> str:
    return f", base in {trial.quantize}" if trial.quantize else ""
