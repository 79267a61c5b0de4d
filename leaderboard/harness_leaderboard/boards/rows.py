"""Records to rows: trials that differ in the seed alone are one row."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence

from harness.contract.record import Record, State
from harness_leaderboard.boards.model import COSTS, Row, Summary, is_finished
from harness_leaderboard.boards.notes import flatten
from harness_leaderboard.boards.published import published_numbers


def build_rows(reports: Sequence[Record], everything: Sequence[Record], is_reference: bool) -> list[Row]:
    """Return one row per group of report trials that differ in the seed alone."""
    variants: dict[str, dict[tuple[str, float], list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in reports:
        variants[record.trial.method][record.trial.cell, record.trial.learning_rate].append(record)
    tune_trials = Counter(each.trial.search for each in everything if each.trial.purpose == "tune")
    rows = []
    for method in sorted(variants):
        groups = [variants[method][key] for key in sorted(variants[method])]
        for group, name in zip(groups, _variant_names(groups), strict=True):
            rows.append(_row(group, name, is_reference, tune_trials[group[0].trial.search]))
    return rows


def _row(records: list[Record], variant: str, is_reference: bool, tune_trials: int) -> Row:
    ordered = tuple(sorted(records, key=lambda each: (each.trial.seed, each.trial_id)))
    finished = [each for each in ordered if is_finished(each)]
    first = ordered[0]
    metric_names = dict.fromkeys([first.main_metric, *(name for each in finished for name in each.metrics)])
    return Row(
        method=first.trial.method,
        variant=variant,
        records=ordered,
        is_reference=is_reference,
        score=_summary(finished, first.main_metric, [each.score for each in finished]),
        metrics={
            name: _summary(finished, name, [each.metrics.get(name) for each in finished]) for name in metric_names
        },
        costs={name: _summary(finished, name, [each.cost.get(name) for each in finished]) for name in COSTS},
        budget_deviation_fraction=_budget_deviation(first),
        tune_trials=tune_trials,
        states={state: count for state in State if (count := sum(each.state is state for each in ordered))},
        published=published_numbers(ordered),
    )


def _summary(finished: Sequence[Record], name: str, values: Sequence[float | int | None]) -> Summary:
    """Return the mean of what is there; the reason when nothing is."""
    present = [float(value) for value in values if value is not None]
    if not present:
        reasons = dict.fromkeys(each.reasons[name] for each in finished if name in each.reasons)
        return Summary(
            value=None,
            reason="; ".join(reasons) or ("not in the records" if finished else "no finished seed"),
        )
    reason = "" if len(present) == len(values) else f"from {len(present)} of {len(values)} seeds"
    return Summary(value=statistics.fmean(present), reason=reason, count=len(present))


def _budget_deviation(record: Record) -> float | None:
    if not record.trial.is_matched:
        return None
    recorded = record.counts.get("budget_deviation_fraction")
    if recorded is not None:
        return float(recorded)
    return record.trial.budget_deviation_fraction


def _variant_names(groups: Sequence[Sequence[Record]]) -> list[str]:
    """Return what sets each group of one method apart: the settings that differ.

    Sizes, which the budget may have decided, and settings of single layers are named only where nothing else differs.
    """
    if len(groups) == 1:
        return [""]
    contents = [flatten({**group[0].trial.to_json(), "seed": None}) for group in groups]
    names = sorted({name for content in contents for name in content})
    differing = [name for name in names if len({content.get(name) for content in contents}) > 1]
    sizes = [name for name in differing if any(content.get(name, "").isdigit() for content in contents)]
    layers = [name for name in differing if name.startswith("layer_settings.")]
    shown = [name for name in differing if name not in {*sizes, *layers}]
    for more in (sizes, layers):
        if len({tuple(content.get(name) for name in shown) for content in contents}) == len(contents):
            break
        shown += [name for name in more if name not in shown and (more is layers or name not in layers)]
    return [
        ", ".join(f"{name.removeprefix('config.')}={content.get(name, 'absent')}" for name in shown)
        for content in contents
    ]


def by_score(rows: Sequence[Row], higher_is_better: bool) -> tuple[Row, ...]:
    """Return rows from best to worst; rows without a score come last."""

    def key(row: Row) -> tuple[bool, float, str]:
        value = row.score.value
        return (value is None, 0.0 if value is None else (-value if higher_is_better else value), row.label)

    return tuple(sorted(rows, key=key))
