"""Records to boards: plain dataclasses that hold everything a page shows, and no markup.

A board is one (task, scale, base model, budget, main metric). A row is one method with one set of settings:
everything in its trials but the seed is equal. The statistics are in ``stats``; wording and number formats
are in ``table``.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np

from harness.contract.record import Record, State
from harness_leaderboard.stats import (
    LEVEL,
    Array,
    Comparison,
    Interval,
    PairedBootstrap,
    holm,
    interquartile_mean,
    mean_interval,
    minimum_detectable_difference,
    tie_groups,
)

TOLERANCE = 0.01  # deviation from the budget up to which methods count as equal

BOOTSTRAP_SEED = 20240601  # any fixed number: the same records always give the same page

PAPER_SCALE = "paper"  # the one at which published numbers were obtained

# Rows of a board may be ranked together only if these are equal in all of them.
COMPARABLE_FIELDS = ("recipe", "model_revision", "data", "precision", "targets", "budget_parameters")

# Environment keys that say how a run was asked for, not what it ran on: they may differ without a warning ...
NOT_CONDITIONS = ("sweep",)
# ... and those that name places on somebody's machine, which are nobody else's business.
NOT_SHOWN = ("command", "results_root")

ITEM_LIMITS = ("limit", "test_rows")  # recipe fields: most items to score per set, 0: all

COSTS = (
    "train_seconds",
    "step_seconds_solo",
    "tokens_per_second_solo",
    "step_flops",
    "peak_memory_bytes",
    "prepare_seconds",
    "evaluate_seconds",
)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A number over the finished seeds of a row, or why there is none."""

    value: float | None
    reason: str = ""
    interval: Interval | None = None
    count: int = 0


@dataclass(frozen=True, kw_only=True)
class Versus:
    """How a row compares with another: the other's label, the other minus this row, and p corrected for all pairs."""

    other: str
    comparison: Comparison
    adjusted_p_value: float


@dataclass(frozen=True, kw_only=True)
class Published:
    """A number that a paper reports for a row's method and budget, and ours for the same metric.

    Attributes:
        metric: Name of the metric.
        step: Updates after which it was scored; ``None``: at the end.
        value: The paper's, in the metric's unit.
        ours: Ours at that step, or at the end where the paper's is; ``None``: not scored there.
        model: The paper's base model; empty: the record does not say.
        budget: The paper's, as a budget of its model; empty: everything trained.
        source: Paper and table.
        confidence: How the number was obtained.
        differences: Why the two cannot be compared; empty: nothing known.
        caveat: What the suite adds about this number, e.g. that the paper quotes it from another.
    """

    metric: str
    step: int | None
    value: float
    ours: float | None
    model: str
    budget: str
    source: str
    confidence: str
    differences: tuple[str, ...]
    caveat: str


@dataclass(frozen=True, kw_only=True)
class RecipeField:
    """One setting of a recipe: ours, and that of the recipe which the published numbers belong to."""

    name: str
    ours: Any
    paper: Any

    @property
    def differs(self) -> bool:
        """Whether they are not the same."""
        return _canonical(self.ours) != _canonical(self.paper)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A trial that did not finish."""

    method: str
    purpose: str
    seed: int
    learning_rate: float
    state: State
    step: int | None
    error_type: str
    message: str
    trial_id: str


@dataclass(frozen=True, kw_only=True)
class TuningTrial:
    """One trial of the learning-rate search."""

    method: str
    learning_rate: float
    seed: int
    score: float | None
    reason: str
    state: State
    train_seconds: float | None
    is_chosen: bool


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method with one set of settings.

    Attributes:
        method: Its name.
        variant: What sets it apart from the same method's other rows; empty if it has one row.
        records: Its report trials, by seed.
        is_reference: Outside the budget.
        score: Mean of the main metric over finished seeds.
        robust_score: Interquartile mean of the same.
        metrics: Every final metric.
        costs: Each of ``COSTS``: means over finished seeds.
        published: What papers report for the method at this budget.
        budget_deviation_fraction: Reached minus asked for, over asked for; ``None`` for a reference.
        tune_trials: Learning-rate trials spent on the method, whatever their end.
        states: How many report trials ended how.
        group: Tie group, 1 is best; ``None``: not ranked.
        rank: As shown, e.g. ``"1"`` or ``"2="``; empty: not ranked.
        rank_reason: Why there is no rank.
        versus: Comparisons with the best row of the board and of its own tie group, where they are other rows.
    """

    method: str
    variant: str
    records: tuple[Record, ...]
    is_reference: bool
    score: Summary
    robust_score: float | None
    metrics: Mapping[str, Summary]
    costs: Mapping[str, Summary]
    budget_deviation_fraction: float | None
    tune_trials: int
    states: Mapping[State, int]
    group: int | None = None
    rank: str = ""
    rank_reason: str = ""
    versus: tuple[Versus, ...] = ()
    published: tuple[Published, ...] = ()

    @property
    def published_score(self) -> Published | None:
        """Return the paper's value of the main metric: at the end, or at its last step."""
        found = [each for each in self.published if each.metric == self.first.main_metric]
        return max(found, key=lambda each: math.inf if each.step is None else each.step, default=None)

    @property
    def label(self) -> str:
        """Return the name with what sets the row apart."""
        return f"{self.method} ({self.variant})" if self.variant else self.method

    @property
    def first(self) -> Record:
        """Return any record of the row; they differ in the seed and in results only."""
        return self.records[0]

    @property
    def seed_scores(self) -> dict[int, float]:
        """Return the score of each finished seed."""
        return {each.trial.seed: each.score for each in self.records if is_finished(each) and each.score is not None}


@dataclass(frozen=True, kw_only=True)
class Board:
    """One comparison.

    Attributes:
        task: Name of the task.
        scale: Of the recipe.
        model: The base model.
        budget: As the user wrote it; empty: there are only reference methods.
        budget_parameters: What it asks for; ``None`` if unknown or different among the rows.
        main_metric: What ranks.
        higher_is_better: Its direction.
        metric_details: Title, unit, direction and help of each metric.
        rows: Methods within the budget: ranked, then by score, then those without a score.
        references: Methods outside the budget.
        failures: Every trial that did not finish.
        tuning: The learning-rate search.
        notes: What a reader must know before believing the numbers.
        differing: In what the rows differ that must be equal; nothing is ranked then.
        has_twin: Whether another board differs in nothing but the main metric.
        comparisons: How many pairs the correction counts.
        detectable_difference: True difference that this board would find with 80 % power; ``None``: cannot be
            said.
        versions: Distinct values of each environment key among the board's records.
    """

    task: str
    scale: str
    model: str
    budget: str
    budget_parameters: int | None
    main_metric: str
    higher_is_better: bool
    metric_details: Mapping[str, Mapping[str, Any]]
    rows: tuple[Row, ...]
    references: tuple[Row, ...]
    failures: tuple[Failure, ...]
    tuning: tuple[TuningTrial, ...]
    notes: tuple[str, ...]
    comparisons: int
    differing: tuple[str, ...]
    detectable_difference: float | None
    versions: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    has_twin: bool = False

    @property
    def all_rows(self) -> tuple[Row, ...]:
        """Return the rows, then the references."""
        return (*self.rows, *self.references)

    @property
    def seeds(self) -> list[int]:
        """Return every report seed of the rows, or of the references where there are no rows."""
        return sorted({each.trial.seed for row in (self.rows or self.references) for each in row.records})

    @property
    def item_limits(self) -> list[int]:
        """Return how many items per set the rows were scored on; 0: all."""
        return sorted({item_limit(row.first.trial.recipe) for row in self.all_rows})

    @property
    def is_ranked(self) -> bool:
        """Whether any row has a rank."""
        return any(row.rank for row in self.rows)


def item_limit(recipe: Mapping[str, Any]) -> int:
    """Return the most items per set that a recipe scores; 0: all."""
    found = [value for name in ITEM_LIMITS if isinstance(value := recipe.get(name), int) and value]
    return min(found, default=0)


def is_finished(record: Record) -> bool:
    """Return whether a record's numbers are results: it trained to the last step and was scored."""
    return record.state is State.COMPLETE


def build_boards(records: Iterable[Record]) -> list[Board]:
    """Return the boards, by task, scale, model and budget; the order of the records does not matter."""
    cells: dict[tuple[Any, ...], dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in sorted(records, key=lambda each: each.trial_id):
        trial = record.trial
        cell = (trial.task, trial.scale, trial.model, record.main_metric, record.higher_is_better)
        cells[cell]["" if _is_reference(record) else trial.budget].append(record)
    boards = []
    for cell in sorted(cells):
        budgets = cells[cell]
        references = budgets.pop("", [])
        for budget in sorted(budgets) or [""]:
            boards.append(_build_board(budget, budgets.get(budget, []), references))
    places = Counter(_place(each) for each in boards)
    return [replace(each, has_twin=places[_place(each)] > 1) for each in boards]


def _place(board: Board) -> tuple[str, str, str, str]:
    return board.task, board.scale, board.model, board.budget


def distinct_values(records: Iterable[Record]) -> dict[str, dict[str, int]]:
    """Return each environment key, dotted, with its values and how many records hold each."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        for key, value in _flatten(record.environment).items():
            if key not in NOT_SHOWN:
                counts[key][value] += 1
    return {key: dict(sorted(counts[key].items(), key=lambda item: (-item[1], item[0]))) for key in sorted(counts)}


def _is_reference(record: Record) -> bool:
    return record.trial.budget_parameters is None or record.trial.budget == ""


def _build_board(budget: str, records: list[Record], reference_records: list[Record]) -> Board:
    everything = [*records, *reference_records]
    reports = [each for each in records if each.trial.purpose == "report"]
    rows = _rows(reports, records, is_reference=False)
    references = _rows(
        [each for each in reference_records if each.trial.purpose == "report"],
        reference_records,
        is_reference=True,
    )
    differing = [
        name for name in COMPARABLE_FIELDS if len({_canonical(getattr(each.trial, name)) for each in reports}) > 1
    ]
    units = sorted({str(each.metric_details.get(each.main_metric, {}).get("unit", "")) for each in reports})
    reasons = [*differing, *(["the metric's unit"] if len(units) > 1 else [])]
    ranked, comparisons, detectable = _rank(rows, reasons, everything[0].higher_is_better)
    first = everything[0]
    budgets = {each.trial.budget_parameters for each in records}
    details: dict[str, Mapping[str, Any]] = {}
    for each in everything:
        details.update(each.metric_details)
    chosen = {(each.trial.method, each.trial.learning_rate) for each in everything if each.trial.purpose == "report"}
    by_method = sorted(
        everything,
        key=lambda each: (each.trial.method, each.trial.learning_rate, each.trial.seed, each.trial_id),
    )
    return Board(
        task=first.trial.task,
        scale=first.trial.scale,
        model=first.trial.model,
        budget=budget,
        budget_parameters=budgets.pop() if len(budgets) == 1 else None,
        main_metric=first.main_metric,
        higher_is_better=first.higher_is_better,
        metric_details=details,
        rows=ranked,
        references=_by_score(references, first.higher_is_better),
        failures=tuple(_failure(each) for each in by_method if not is_finished(each)),
        tuning=tuple(_tuning_trial(each, chosen) for each in by_method if each.trial.purpose == "tune"),
        notes=(*_notes_on_published([*ranked, *references]), *_notes(ranked, differing, reports, everything)),
        comparisons=comparisons,
        differing=tuple(reasons),
        detectable_difference=detectable,
        versions=distinct_values(everything),
    )


def _rows(reports: Sequence[Record], everything: Sequence[Record], is_reference: bool) -> list[Row]:
    """Return one row per group of report trials that differ in the seed alone."""
    variants: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in reports:
        content = {key: value for key, value in record.trial.to_json().items() if key != "seed"}
        variants[record.trial.method][_canonical(content)].append(record)
    tune_trials = Counter(_cell(each) for each in everything if each.trial.purpose == "tune")
    rows = []
    for method in sorted(variants):
        groups = [variants[method][key] for key in sorted(variants[method])]
        for group, name in zip(groups, _variant_names(groups), strict=True):
            rows.append(_row(group, name, is_reference, tune_trials[_cell(group[0])]))
    return rows


def _row(records: list[Record], variant: str, is_reference: bool, tune_trials: int) -> Row:
    ordered = tuple(sorted(records, key=lambda each: (each.trial.seed, each.trial_id)))
    finished = [each for each in ordered if is_finished(each)]
    first = ordered[0]
    metric_names = dict.fromkeys([first.main_metric, *(name for each in finished for name in each.metrics)])
    scores = [each.score for each in finished if each.score is not None]
    return Row(
        method=first.trial.method,
        variant=variant,
        records=ordered,
        is_reference=is_reference,
        score=_summary(finished, first.main_metric, [each.score for each in finished]),
        robust_score=interquartile_mean(scores) if scores else None,
        metrics={
            name: _summary(finished, name, [each.metrics.get(name) for each in finished]) for name in metric_names
        },
        costs={name: _summary(finished, name, [each.cost.get(name) for each in finished]) for name in COSTS},
        budget_deviation_fraction=None if is_reference else _budget_deviation(first),
        tune_trials=tune_trials,
        states={state: count for state in State if (count := sum(each.state is state for each in ordered))},
        published=_published(ordered),
    )


def _published(records: Sequence[Record]) -> tuple[Published, ...]:
    """Return what papers report for this method at this budget, each number once, by metric and step."""
    first = records[0]
    known = {**first.metric_details, **{name: {} for each in records for name in each.metrics}}
    entries = {_canonical(dict(entry)): entry for each in records for entry in each.published}
    found = [
        _beside_ours(entry, records)
        for _, entry in sorted(entries.items())
        if str(entry.get("method")).partition(":")[0] == first.trial.method
        and entry.get("budget", "") == first.trial.budget
        and entry.get("metric") in known
        and isinstance(entry.get("value"), int | float)
    ]
    return tuple(sorted(found, key=lambda each: (each.metric, math.inf if each.step is None else each.step)))


def _beside_ours(entry: Mapping[str, Any], records: Sequence[Record]) -> Published:
    metric, step = str(entry["metric"]), entry.get("step")
    found = [_value(each, metric, step) for each in records if is_finished(each)]
    ours = [value for value in found if value is not None]
    model = str(entry.get("model") or "")
    return Published(
        metric=metric,
        step=step,
        value=float(entry["value"]),
        ours=statistics.fmean(ours) if ours else None,
        model=model,
        budget=str(entry.get("budget") or ""),
        source=str(entry.get("source") or "source not given"),
        confidence=str(entry.get("confidence") or ""),
        differences=tuple(_differences(records[0], model)),
        caveat=str(entry.get("caveat") or ""),
    )


def _value(record: Record, metric: str, step: int | None) -> float | None:
    """Return a metric of a finished trial after ``step`` updates; ``None`` as step: its final one, of the test data."""
    points = {int(point["step"]): point.get("metrics") or {} for point in record.history}
    value = (record.metrics if step is None or step == max(points, default=None) else points.get(step, {})).get(metric)
    return None if value is None else float(value)


def _differences(record: Record, model: str) -> list[str]:
    """Return why a record's numbers cannot be compared with those of a paper's model, in words."""
    trial, paper = record.trial, record.paper_recipe
    found = [f"ours is the {trial.scale} scale, not the paper's"] if trial.scale != PAPER_SCALE else []
    if not model:
        found.append(f"ours is of {trial.model}; which model the paper's is of, the record does not say")
    elif model != trial.model:
        found.append(f"ours is of {trial.model}, the paper's of {model}")
    if not paper:
        found.append("in what our recipe differs from the paper's, the record does not say")
    elif count := sum(each.differs for each in recipe_fields(record)):
        found.append(f"{count} of the recipe's fields are not the paper's")
    if limit := item_limit(trial.recipe):
        found.append(f"ours was scored on {limit} items per set")
    return found


def recipe_fields(record: Record) -> list[RecipeField]:
    """Return a record's recipe beside the paper's, by name; empty: the record does not hold the paper's."""
    ours, paper = record.trial.recipe, record.paper_recipe
    names = sorted({*ours, *paper}) if paper else []
    return [RecipeField(name=name, ours=ours.get(name), paper=paper.get(name)) for name in names]


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
    interval = mean_interval(present) if len(present) > 1 else None
    return Summary(value=statistics.fmean(present), reason=reason, interval=interval, count=len(present))


def _budget_deviation(record: Record) -> float | None:
    recorded = record.counts.get("budget_deviation_fraction")
    if recorded is not None:
        return float(recorded)
    asked = record.trial.budget_parameters
    return (record.trial.adapter_parameters - asked) / asked if asked else None


def _variant_names(groups: Sequence[Sequence[Record]]) -> list[str]:
    """Return what sets each group of one method apart: the values of the fields that differ."""
    if len(groups) == 1:
        return [""]
    contents = [_flatten({**group[0].trial.to_json(), "seed": None}) for group in groups]
    names = sorted({name for content in contents for name in content})
    differing = [name for name in names if len({content.get(name) for content in contents}) > 1]
    return [", ".join(f"{name}={content.get(name, 'absent')}" for name in differing) for content in contents]


def _rank(
    rows: Sequence[Row], differing: Sequence[str], higher_is_better: bool
) -> tuple[tuple[Row, ...], int, float | None]:
    """Return rows in order with ranks, the number of pairs corrected for, and the detectable difference."""
    reasons = {id(row): _why_not_ranked(row, differing) for row in rows}
    reasons |= _why_not_paired([row for row in rows if not reasons[id(row)]])
    able = list(_by_score([row for row in rows if not reasons[id(row)]], higher_is_better))
    unable = _by_score([row for row in rows if reasons[id(row)]], higher_is_better)
    rest = tuple(replace(row, rank_reason=reasons[id(row)]) for row in unable)
    if len(able) < 2:
        alone = tuple(replace(row, rank_reason="nothing to compare with") for row in able)
        return _by_score([*alone, *rest], higher_is_better), 0, None
    bootstrap = PairedBootstrap(BOOTSTRAP_SEED)
    # The leader is picked by looking at the scores, so the correction counts all pairs, not only those with
    # the leader.
    pairs = list(combinations(range(len(able)), 2))
    results = [_compare(bootstrap, able[first], able[second]) for first, second in pairs]
    adjusted = holm([1.0 if result is None else result.p_value for result in results])
    p_values = dict(zip(pairs, adjusted, strict=True))
    groups = tie_groups(len(able), lambda first, second: p_values[first, second] < LEVEL)
    compared = dict(zip(pairs, results, strict=True))
    ranked = []
    for index in range(len(able)):  # by score: a method that is tied for being noisy does not rise above better ones
        place = 1 + sum(group < groups[index] for group in groups)
        is_tied = groups.count(groups[index]) > 1
        versus = []
        for leader in dict.fromkeys((0, groups.index(groups[index]))):
            comparison = compared.get((leader, index))
            if comparison is not None:
                adjusted_p_value = p_values[leader, index]
                versus.append(
                    Versus(other=able[leader].label, comparison=comparison, adjusted_p_value=adjusted_p_value)
                )
        ranked.append(
            replace(
                able[index],
                group=groups[index],
                rank=f"{place}=" if is_tied else f"{place}",
                versus=tuple(versus),
            )
        )
    usable = [result for result in results if result is not None and result.standard_error > 0]
    detectable = None
    if usable:
        detectable = minimum_detectable_difference(
            statistics.median(result.standard_error for result in usable),
            statistics.median_low([result.degrees for result in usable]),
            len(pairs),
            statistics.median_low([result.item_degrees for result in usable]),
            statistics.median(result.seed_share for result in usable),
        )
    return (*ranked, *rest), len(pairs), detectable


def _why_not_ranked(row: Row, differing: Sequence[str]) -> str:
    """Return why a row gets no rank, or nothing."""
    scores = len(row.seed_scores)
    if scores == 0:
        return "no finished seed with a score"
    if differing:
        return f"the rows differ in {', '.join(differing)}"
    if scores < len(row.records):
        # The mean of the survivors flatters a method that fails on hard seeds.
        what = "did not finish" if any(not is_finished(each) for each in row.records) else "have no score"
        return f"{len(row.records) - scores} of {len(row.records)} seeds {what}"
    return "1 seed" if scores == 1 else ""


def _why_not_paired(rows: Sequence[Row]) -> dict[int, str]:
    """Return, by id, why rows cannot be paired with the others: they ran other seeds, or not all items have a score.

    A mean over other seeds or items is another quantity: such a row could lead although it loses every pair.
    """
    found = {}
    seeds = Counter(tuple(row.seed_scores) for row in rows)
    usual = max(seeds, key=lambda each: (seeds[each], len(each), each), default=())
    gaps = {id(row): _gaps(row) for row in rows}
    for row in rows:
        if tuple(row.seed_scores) != usual:
            ran, others = (", ".join(map(str, each)) for each in (row.seed_scores, usual))
            found[id(row)] = f"ran seeds {ran}, not {others}"
        elif any(gaps[id(row)]) and len(set(gaps.values())) > 1:
            found[id(row)] = "not the same items have a score as in other rows"
    return found


def _gaps(row: Row) -> tuple[tuple[int, ...], ...]:
    """Return the places of a row's items without a score, by seed."""
    items = [each.items.get(each.main_metric, ()) for each in row.records]
    return tuple(tuple(place for place, value in enumerate(each) if value is None) for each in items)


def _compare(bootstrap: PairedBootstrap, first: Row, second: Row) -> Comparison | None:
    """Compare two rows on their common seeds, item by item where both have items.

    ``None`` with fewer than two common seeds.
    """
    seeds = sorted(first.seed_scores.keys() & second.seed_scores.keys())
    if len(seeds) < 2:
        return None
    first_items, second_items = _items(first, seeds), _items(second, seeds)
    if first_items is not None and second_items is not None and first_items.shape == second_items.shape:
        differences = first_items - second_items
        if not np.isnan(differences).all(axis=1).any():
            return bootstrap.compare(differences)
    scores = [first.seed_scores[seed] - second.seed_scores[seed] for seed in seeds]
    return bootstrap.compare(np.asarray(scores, dtype=np.float64))


def _items(row: Row, seeds: Sequence[int]) -> Array | None:
    """Return the main metric's items, shape (S, items), if their mean is the score (an F1's is not)."""
    columns = []
    for record in row.records:
        if record.trial.seed not in seeds:
            continue
        items = record.items.get(record.main_metric, ())
        present = [value for value in items if value is not None]
        if not present or record.score is None:
            return None
        if not math.isclose(statistics.fmean(present), record.score, rel_tol=1e-6, abs_tol=1e-6):
            return None
        columns.append([math.nan if value is None else float(value) for value in items])
    same_length = len({len(column) for column in columns}) == 1 and len(columns[0]) > 1
    return np.asarray(columns, dtype=np.float64) if same_length else None


def _by_score(rows: Sequence[Row], higher_is_better: bool) -> tuple[Row, ...]:
    """Return rows from best to worst; rows without a score come last."""

    def key(row: Row) -> tuple[bool, float, str]:
        value = row.score.value
        return (value is None, 0.0 if value is None else (-value if higher_is_better else value), row.label)

    return tuple(sorted(rows, key=key))


def _notes(
    rows: Sequence[Row], differing: Sequence[str], reports: Sequence[Record], everything: Sequence[Record]
) -> list[str]:
    """Return what would otherwise mislead a reader."""
    notes = []
    for name in differing:
        values: dict[str, list[str]] = defaultdict(list)
        for each in reports:
            values[_canonical(getattr(each.trial, name))].append(each.trial.method)
        notes.append(f"Not one comparison: the trials differ in {name}: {_who(values)}. Nothing here is ranked.")
    references = [each for each in everything if _is_reference(each) and each.trial.purpose == "report"]
    for name in ("recipe", "model_revision", "data", "precision"):
        usual = {_canonical(getattr(each.trial, name)) for each in reports}
        odd = sorted({each.trial.method for each in references if _canonical(getattr(each.trial, name)) not in usual})
        if usual and odd:
            notes.append(f"The reference {', '.join(odd)} differs from the ranked methods in {name}.")
    for key, counts in distinct_values(everything).items():
        if len(counts) > 1 and key not in NOT_CONDITIONS:
            holders: dict[str, list[str]] = defaultdict(list)
            for each in everything:
                flat = _flatten(each.environment)
                if key in flat:
                    holders[flat[key]].append(each.trial.method)
            notes.append(
                f"Mixed environment, {key}: {_who(holders)}. Times and memory are comparable only within one value."
            )
    silent = sum(not each.environment for each in everything)
    if silent:
        notes.append(f"{silent} of {len(everything)} records do not say on what hardware and versions they ran.")
    several = sorted(method for method, count in Counter(row.method for row in rows).items() if count > 1)
    if several:
        notes.append(
            f"{', '.join(several)}: several rows with different settings. Taking a method's best of them by this score "
            "is a choice made on the test data."
        )
    unreported = {each.trial.method for each in everything} - {
        each.trial.method for each in everything if each.trial.purpose == "report"
    }
    for method in sorted(unreported):
        notes.append(f"{method} has learning-rate trials but no reported result yet.")
    efforts = {row.method: row.tune_trials for row in rows}
    if len(set(efforts.values())) > 1:
        listed = ", ".join(
            f"{method} {effort}" for method, effort in sorted(efforts.items(), key=lambda item: (-item[1], item[0]))
        )
        notes.append(f"Tuning effort is not equal (learning-rate trials): {listed}.")
    seed_sets = {tuple(each.trial.seed for each in row.records) for row in rows}
    if len(seed_sets) > 1:
        notes.append("The methods did not run the same seeds; only rows with the same seeds are ranked.")
    uneven = {row.label: row.budget_deviation_fraction for row in rows if row.budget_deviation_fraction is not None}
    if any(abs(each) > TOLERANCE for each in uneven.values()):
        listed = ", ".join(f"{label} {each:+.2%}" for label, each in uneven.items()).replace("%", " %")
        notes.append(f"The budget is not the same within 1 %; trained adapter parameters against it: {listed}.")
    besides = {row.label: max(int(each.counts.get("task_parameters") or 0) for each in row.records) for row in rows}
    if len(set(besides.values())) > 1:
        listed = ", ".join(f"{label} {count:,}" for label, count in besides.items())
        notes.append(f"Parameters trained besides the adapters, which no budget counts, differ: {listed}.")
    versions: dict[str, list[str]] = defaultdict(list)
    for each in reports:
        versions[each.trial.plugins.get("task", "not recorded")].append(each.trial.method)
    if len(versions) > 1:
        notes.append(f"Scored by different versions of the task: {_who(versions)}. Are its numbers still the same?")
    notes += [note for row in rows for note in _notes_on_search(row, everything)]
    return notes


def _notes_on_search(row: Row, everything: Sequence[Record]) -> list[str]:
    """Return what is odd about the learning rate of a row that was searched."""
    scores = {
        each.trial.learning_rate: each.score if is_finished(each) else None  # a rate that diverges bounds the others
        for each in everything
        if each.trial.purpose == "tune" and _cell(each) == _cell(row.first)
    }
    found = {rate: score for rate, score in scores.items() if score is not None}
    if len(found) < 2:
        return []
    best = (max if row.first.higher_is_better else min)(found.values())
    rates = [rate for rate, score in found.items() if score == best]
    notes, used = [], row.first.trial.learning_rate
    if used not in rates:
        notes.append(f"{row.label} is reported at rate {used:g}; its search found {_rates(rates)} best.")
    elif len(rates) == 1 and used in (min(scores), max(scores)):
        notes.append(f"{row.label}: its rate, {used:g}, is at the edge of those searched; a better one may lie beyond.")
    return notes


def _rates(rates: Sequence[float]) -> str:
    return " or ".join(f"{each:g}" for each in sorted(rates))


def _cell(record: Record) -> str:
    """Return everything of a trial but rate, seed and purpose: what its learning rate is searched for."""
    own = ("learning_rate", "seed", "purpose")
    return _canonical({key: value for key, value in record.trial.to_json().items() if key not in own})


def _notes_on_published(rows: Sequence[Row]) -> list[str]:
    """Return why published numbers are not ours to compare, and where the recipe is not the paper's."""
    notes = []
    differences = dict.fromkeys(text for row in rows for each in row.published for text in each.differences)
    if differences:
        notes.append(f"The published numbers and ours are not comparable: {'; '.join(differences)}.")
    caveats: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        for caveat in dict.fromkeys(each.caveat for each in row.published if each.caveat):
            caveats[caveat].append(row.label)
    notes += [f"Published for {', '.join(labels)}: {caveat}." for caveat, labels in caveats.items()]
    recipes: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        fields = [each for each in recipe_fields(row.first) if each.differs] if row.published else []
        if fields:
            listed = ", ".join(f"{each.name} {setting_text(each.ours)} ({setting_text(each.paper)})" for each in fields)
            recipes[listed].append(row.label)
    for listed, labels in recipes.items():
        who = "" if len(recipes) == 1 else f" of {', '.join(labels)}"
        notes.append(f"Recipe{who}, ours with the paper's in brackets where they differ: {listed}.")
    return notes


def setting_text(value: Any) -> str:
    """Return a setting's value for people."""
    if isinstance(value, str):
        return value or "none"
    if isinstance(value, list | tuple):
        return " ".join(setting_text(each) for each in value) or "none"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,.10g}"
    return "absent" if value is None else _canonical(value)


def _who(values: Mapping[str, Sequence[str]]) -> str:
    parts = [f"{value} ({', '.join(sorted(set(methods)))})" for value, methods in sorted(values.items())]
    return "; ".join(parts)


def _failure(record: Record) -> Failure:
    error = record.error or {}
    step = error.get("step")
    return Failure(
        method=record.trial.method,
        purpose=record.trial.purpose,
        seed=record.trial.seed,
        learning_rate=record.trial.learning_rate,
        state=record.state,
        step=step if isinstance(step, int) else None,
        error_type=str(error.get("type") or ""),
        message=str(error.get("message") or ""),
        trial_id=record.trial_id,
    )


def _tuning_trial(record: Record, chosen: set[tuple[str, float]]) -> TuningTrial:
    score = record.score if is_finished(record) else None
    seconds = record.cost.get("train_seconds")
    return TuningTrial(
        method=record.trial.method,
        learning_rate=record.trial.learning_rate,
        seed=record.trial.seed,
        score=score,
        reason=""
        if score is not None
        else record.reasons.get(record.main_metric, f"trial ended as {record.state.value}"),
        state=record.state,
        train_seconds=None if seconds is None else float(seconds),
        is_chosen=(record.trial.method, record.trial.learning_rate) in chosen,
    )


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested mappings as dotted keys with readable values."""
    flat: dict[str, str] = {}
    for key, each in value.items():
        if isinstance(each, Mapping):
            flat.update(_flatten(each, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = each if isinstance(each, str) else _canonical(each)
    return flat


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
