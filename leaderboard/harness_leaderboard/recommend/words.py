"""A recommendation as text and as plain JSON types."""

from __future__ import annotations

import shlex
from typing import Any

from harness_leaderboard.boards.model import Row
from harness_leaderboard.recommend.choose import Other, Recommendation
from harness_leaderboard.statistics.analysis import NOTHING, Difference, Estimate
from harness_leaderboard.view.text import bytes_text, scope_text

BYTES = 4  # of a stored parameter: adapters are kept in float32


def as_text(found: Recommendation, root: str = "results") -> str:
    """Return a recommendation as a paragraph, with the commands that go on from it."""
    first, details = found.best.first, found.best.first.metric_details.get(found.best.first.main_metric, {})
    title = str(details.get("title", first.main_metric))
    direction = "higher" if first.higher_is_better else "lower"
    lines = [f"Recommended for {first.trial.task} on {first.trial.model} ({title}, {direction} is better):", ""]
    lines.append(f"  Use {configuration(found.choice)}")
    lines.append(f"  {title} {_score(found)}; {_costs(found.choice)}.")
    lines.append("")
    if found.why_not:
        lines.append(f"* Not sure of it: {found.why_not}.")
    lines.append(f"* {_beside_the_best(found)}")
    if found.choice.first.trial.largest:
        lines.append(f"* {_below_the_budget(found)}")
    if found.analysis.detectable is not None and found.analysis.detectable < NOTHING:
        said = "In every seed the configurations have the same score: what sets them apart, this task does not measure."
        lines.append(f"* {said}")
    elif found.analysis.detectable is not None:
        scope = "new items of the same kind" if found.analysis.scope == "new items" else "these items"
        lines.append(
            f"* A true difference of about {found.analysis.detectable:.3g} would be seen in about 4 of 5 such "
            f"comparisons ({scope}, {found.analysis.level:.0%} level over all pairs); a smaller one may be there."
        )
    lines.append(f"* {_tried(found)}")
    lines += [f"* {_reference(each)}" for each in found.references]
    lines += [f"* {_brought(each, found)}" for each in found.larger]
    if not found.larger and found.choice.first.trial.adapter_parameters:
        lines.append(f"* No larger budget was tried; {_next_budget(found.choice)}")
    where = "" if root == "results" else f" --results {shlex.quote(root)}"
    task = f" --task {shlex.quote(first.trial.task)}"
    lines += ["", f"Its adapter: harness export best{task}{where} --format auto -o adapter"]
    return "\n".join(lines)


def as_json(found: Recommendation) -> dict[str, Any]:
    """Return a recommendation as plain JSON types."""
    first = found.best.first
    return {
        "task": first.trial.task,
        "data": first.trial.data,
        "model": first.trial.model,
        "scale": first.trial.scale,
        "metric": first.main_metric,
        "higher_is_better": first.higher_is_better,
        "use": {
            **_row_json(found.choice),
            "config": dict(found.choice.first.trial.config),
            "interval": _interval_json(found),
        },
        "trial_id": found.record.trial_id,
        "best": _row_json(found.best),
        "loss_against_best": _difference_json(found.loss),
        "cheapest_at_whole_budget": None if found.at_whole_budget is None else _row_json(found.at_whole_budget),
        "cannot_be_told_apart": [_row_json(row) for row in found.tied],
        "detectable_difference": found.analysis.detectable,
        "scope": found.analysis.scope,
        "level": found.analysis.level,
        "larger_budgets": [
            {**_row_json(each.row), "difference": _difference_json(each.difference)} for each in found.larger
        ],
        "references": [
            {**_row_json(each.row), "difference": _difference_json(each.difference)} for each in found.references
        ],
        "configurations": [_row_json(row) for row in found.rows],
        "failed_trials": found.failed,
        "why_not_sure": found.why_not or None,
    }


def pairs_json(found: Recommendation) -> list[dict[str, Any]]:
    """Return every pair of configurations: which, how far apart, and how sure that is."""
    trial, rows = found.best.first.trial, found.rows
    return [
        {
            "task": trial.task,
            "model": trial.model,
            "metric": found.best.first.main_metric,
            **{f"first_{name}": value for name, value in _named(rows[first]).items()},
            **{f"second_{name}": value for name, value in _named(rows[second]).items()},
            **(_difference_json(difference) or {}),
            "seeds": difference.seeds,
            "scope": found.analysis.scope,
        }
        for (first, second), difference in sorted(found.analysis.differences.items())
    ]


def _named(row: Row) -> dict[str, Any]:
    trial = row.first.trial
    return {"method": trial.method, "budget": trial.budget or None, "learning_rate": row.first.learning_rate}


def configuration(row: Row) -> str:
    """Return a configuration in words: method, budget, rate, and what else was set."""
    trial = row.first.trial
    where = "the largest it can be, below budget" if trial.largest else "budget"
    budget = f"{where} {trial.budget}" if trial.budget else "outside every budget"
    settings = ", ".join(f"{name}={value}" for name, value in trial.config.items())
    rate = "" if row.first.learning_rate is None else f", learning rate {row.first.learning_rate:g}"
    return f"{trial.method}, {budget}{rate}" + (f" ({settings})" if settings else "")


def _score(found: Recommendation) -> str:
    row, estimate = found.choice, _estimate(found)
    interval, items = estimate.interval, scope_text(estimate.new_items is not None)
    seeds = f"over {row.score.count} {'seed' if row.score.count == 1 else 'seeds'}"
    if interval is None or interval.high - interval.low < NOTHING:  # nothing varied, which is no certainty
        return f"{row.score.value:.4g} {seeds}, no interval"
    return f"{row.score.value:.4g}, 95 % interval for {items} {interval.low:.4g} to {interval.high:.4g}, {seeds}"


def _costs(row: Row) -> str:
    trial, said = row.first.trial, []
    said.append(f"{trial.adapter_parameters:,} trained parameters ({bytes_text(trial.adapter_parameters * BYTES)})")
    if (seconds := row.costs["train_seconds"].value) is not None:
        lanes = row.lanes
        together = f" beside others, {' or '.join(map(str, lanes))} at once" if lanes and lanes != [1] else ""
        said.append(f"{seconds:.1f} s to train{together}")
    if (memory := row.costs["peak_memory_bytes"].value) is not None:
        said.append(f"{bytes_text(memory)} of memory")
    return ", ".join(said)


def _beside_the_best(found: Recommendation) -> str:
    if found.choice is found.best:
        others = len(found.tied) - 1
        told = f", and is the cheapest of {others + 1} that cannot be told apart" if others else ""
        count = len(found.rows) - len(found.references)
        if count == 1:
            return "It is the only configuration that was tried."
        return f"It has the best score of the {count} configurations{told}."
    loss = found.loss
    interval = "" if loss is None else f", a difference of {_signed(loss)}"
    return (
        f"The best score, {found.best.score.value:.4g}, is that of {configuration(found.best)}; the two cannot be told "
        f"apart{interval}. It is the cheapest of {len(found.tied)} of which that holds."
    )


def _below_the_budget(found: Recommendation) -> str:
    """Return that the choice is smaller than what it is compared with, and which would have been chosen otherwise."""
    trial, whole = found.choice.first.trial, found.at_whole_budget
    said = (
        f"It is smaller than the budget asks, with {trial.adapter_parameters:,} of {trial.budget_parameters:,} "
        f"parameters: {trial.method} cannot be larger on this model."
    )
    if whole is None:
        return f"{said} No configuration at a whole budget does as well."
    return f"{said} The cheapest at a whole budget is {configuration(whole)}, {whole.score.value:.4g}."


def _signed(difference: Difference) -> str:
    interval, items = difference.interval, scope_text(difference.new_items is not None)
    value = difference.difference + 0.0  # never "-0"
    if interval.high - interval.low < NOTHING:
        return f"{value:+.3g} on every seed"
    return f"{value:+.3g} (95 % interval for {items} {interval.low:+.3g} to {interval.high:+.3g})"


def _tried(found: Recommendation) -> str:
    trials = [row.first.trial for row in found.rows]
    counts = {
        "methods": len({each.method for each in trials}),
        "budgets": len({each.budget for each in trials if each.budget}),
        "learning rates": len({row.first.learning_rate for row in found.rows} - {None}),
        "seeds": len({seed for row in found.rows for seed in row.seed_scores}),
    }
    said = ", ".join(f"{count} {name if count != 1 else name.removesuffix('s')}" for name, count in counts.items())
    searched = sum(row.tune_trials for row in found.rows)
    more = f"; {searched} trials searched rates" if searched else ""
    failed = f"; {found.failed} trials ended without a score" if found.failed else ""
    return f"Tried: {said}{more}{failed}."


def _reference(other: Other) -> str:
    trial, difference = other.row.first.trial, other.difference
    said = f"{trial.method}, outside every budget with {trial.adapter_parameters:,} parameters,"
    if difference is None:
        return f"{said} cannot be compared with it."
    sure = "which is more than chance" if difference.is_separated else "which may be chance"
    return f"{said} brought {_signed(difference)}, {sure}."


def _brought(larger: Other, found: Recommendation) -> str:
    row, difference = larger.row, larger.difference
    if difference is None:
        return f"Budget {row.first.trial.budget} cannot be compared with it."
    sure = "which is more than chance" if difference.is_separated else "which may be chance"
    budget = row.first.trial.budget
    what = "The whole" if budget == found.choice.first.trial.budget else "A larger"  # of what is the largest it can be
    return f"{what} budget, {budget} with {row.method}, brought {_signed(difference)}, {sure}."


def _next_budget(row: Row) -> str:
    return f"`--budget {2 * row.first.trial.adapter_parameters}` would tell what twice as many parameters bring."


def _row_json(row: Row) -> dict[str, Any]:
    trial = row.first.trial
    return {
        "method": trial.method,
        "budget": trial.budget or None,
        "learning_rate": row.first.learning_rate,
        "adapter_parameters": trial.adapter_parameters,
        "is_largest_it_can_be": trial.largest,
        "score": row.score.value,
        "seeds": sorted(row.seed_scores),
        "train_seconds": row.costs["train_seconds"].value,
        "step_seconds_solo": row.costs["step_seconds_solo"].value,
        "peak_memory_bytes": row.costs["peak_memory_bytes"].value,
    }


def _estimate(found: Recommendation) -> Estimate:
    return found.analysis.estimates[found.rows.index(found.choice)]


def _interval_json(found: Recommendation) -> list[float] | None:
    interval = _estimate(found).interval
    return None if interval is None else [interval.low, interval.high]


def _difference_json(difference: Difference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    return {
        "difference": difference.difference,
        "low": difference.interval.low,
        "high": difference.interval.high,
        "adjusted_p_value": difference.adjusted_p_value,
        "is_separated": difference.is_separated,
    }
