"""What a board is made of. A board is one (task, scale, base model, budget, main metric).

A row is one method with one set of settings: everything in its trials but the seed is equal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from harness.contract.looks import Looks
from harness.contract.record import Record, State
from harness_leaderboard.statistics.analysis import Analysis, Difference, Estimate
from harness_leaderboard.statistics.error import Interval

PAPER_SCALE = "paper"  # the one at which published numbers were obtained
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


def canonical(value: Any) -> str:
    """Return a value as text that is equal where the values are."""
    return json.dumps(value, sort_keys=True)


def item_limit(record: Record) -> int:
    """Return the most items per set that were scored; 0: all, also where there were no more than the recipe allows."""
    recipe = record.trial.recipe
    found = min((each for name in ITEM_LIMITS if isinstance(each := recipe.get(name), int) and each), default=0)
    scored = record.items.get(record.main_metric, ()) if found else ()
    return 0 if 0 < len(scored) < found else found


def is_finished(record: Record) -> bool:
    """Return whether a record's numbers are results: it trained to the last step and was scored."""
    return record.state is State.COMPLETE


def is_reference(record: Record) -> bool:
    """Return whether a record's method stands beside what is compared: outside every budget, or too small."""
    return has_no_budget(record) or record.trial.largest


def halves(record: Record) -> bool:
    """Return whether a record is of a run whose searches stop the worse half after 1, 2, 4, ... seeds."""
    plan = record.environment.get("search")
    return isinstance(plan, Mapping) and plan.get("halves") is True


def has_no_budget(record: Record) -> bool:
    """Return whether a record's method trains outside every budget."""
    return record.trial.budget_parameters is None or record.trial.budget == ""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The mean of a number over the finished seeds of a row, or why there is none."""

    value: float | None
    reason: str = ""
    count: int = 0


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
        return canonical(self.ours) != canonical(self.paper)


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
    """One trial of the learning-rate search.

    ``stopped_after`` is the number of seeds after which its rate got no more, while better ones did.
    """

    method: str
    learning_rate: float
    seed: int
    score: float | None
    reason: str
    state: State
    train_seconds: float | None
    is_chosen: bool
    stopped_after: int | None
    trial_id: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method with one set of settings.

    Attributes:
        method: Its name.
        variant: What sets it apart from the same method's other rows; empty if it has one row.
        records: Its report trials, by seed.
        is_reference: Beside what is compared: outside the budget, or too small for it.
        score: Mean of the main metric over finished seeds.
        metrics: Every final metric.
        costs: Each of ``COSTS``: means over finished seeds.
        published: What papers report for the method at this budget.
        budget_deviation_fraction: Reached minus asked for, over asked for; ``None`` for a reference.
        tune_trials: Learning-rate trials spent on the method, whatever their end.
        states: How many report trials ended how.
        estimate: Score, intervals and ranks, from the board's analysis.
        rank_reason: Why there is no rank; empty: there is one.
    """

    method: str
    variant: str
    records: tuple[Record, ...]
    is_reference: bool
    score: Summary
    metrics: Mapping[str, Summary]
    costs: Mapping[str, Summary]
    budget_deviation_fraction: float | None
    tune_trials: int
    states: Mapping[State, int]
    published: tuple[Published, ...] = ()
    estimate: Estimate | None = None
    rank_reason: str = ""

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
    def beside(self) -> str:
        """Return why the row stands beside what is compared; empty: it does not."""
        trial = self.first.trial
        if trial.largest:
            return f"not ranked, largest it can be: {trial.adapter_parameters:,} of {trial.budget_parameters:,}"
        return "reference, outside the budget" if self.is_reference else ""

    @property
    def first(self) -> Record:
        """Return any record of the row; they differ in the seed and in results only."""
        return self.records[0]

    @cached_property
    def item_limit(self) -> int:
        """Return the most items per set that it was scored on; 0: all."""
        return item_limit(self.first)

    @cached_property
    def looks(self) -> Looks | None:
        """Return the plan of looks by which the row's seeds were added; ``None``: they were run without one."""
        return next((found for each in self.records if (found := Looks.of(each.environment)) is not None), None)

    @property
    def ended(self) -> list[int]:
        """Return the seeds that came to an end of whatever kind, not being stopped by the user."""
        return [each.trial.seed for each in self.records if each.state is not State.INTERRUPTED]

    @property
    def lanes(self) -> list[int]:
        """Return how many trials trained together, the row's among them, in ascending order; a GPU's packs differ."""
        found = (each.cost.get("pack_lanes") for each in self.records if is_finished(each))
        return sorted({int(lanes) for lanes in found if lanes})

    @property
    def seed_scores(self) -> dict[int, float]:
        """Return the score of each finished seed."""
        return {each.trial.seed: each.score for each in self.records if is_finished(each) and each.score is not None}

    @property
    def rank(self) -> tuple[int, int] | None:
        """Return the best and the worst rank that the row may have; ``None``: it has none."""
        found = self.estimate
        if self.rank_reason or found is None or found.best_rank is None or found.worst_rank is None:
            return None
        return found.best_rank, found.worst_rank

    @property
    def interval(self) -> Interval | None:
        """Return the interval that decides: for new items of the same kind where there are items, else for seeds."""
        return None if self.estimate is None else self.estimate.interval

    @property
    def is_for_new_items(self) -> bool:
        """Whether that interval is one for new items."""
        return self.estimate is not None and self.estimate.new_items is not None


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
        rows: Methods within the budget, best ranks first, then by score, then those without a score.
        references: Methods outside the budget, and those too small for it.
        analysis: What may be claimed about ``rows``, by their labels. ``None``: nothing.
        failures: Every trial that did not finish.
        tuning: The learning-rate search.
        notes: What a reader must know before believing the numbers.
        differing: In what the rows differ that must be equal; nothing is ranked then.
        chance: What guessing scores, in the main metric; ``None``: not known, or the rows are no one comparison.
        chance_from: Trials beside the board's whose records say it, where its own do not.
        bounds: Between which the main metric is, whatever is trained.
        has_twin: Whether another board differs in nothing but the main metric.
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
    analysis: Analysis | None
    failures: tuple[Failure, ...]
    tuning: tuple[TuningTrial, ...]
    notes: tuple[str, ...]
    differing: tuple[str, ...]
    versions: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    chance: float | None = None
    chance_from: tuple[str, ...] = ()
    bounds: tuple[float, float] = (-math.inf, math.inf)
    has_twin: bool = False

    @property
    def no_better_than_chance(self) -> list[Row]:
        """Return the rows that may be guessing: they are not proven better, at the board's level for all together."""
        if self.chance is None:
            return []
        return [row for row in self.rows if row.estimate is not None and row.estimate.beats_chance is False]

    @property
    def is_near_chance(self) -> bool:
        """Whether rows are held against guessing, and none is proven better."""
        may_guess = self.no_better_than_chance
        return bool(may_guess) and not any(row.estimate and row.estimate.beats_chance for row in self.rows)

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
        return sorted({row.item_limit for row in self.all_rows})

    @property
    def is_ranked(self) -> bool:
        """Whether any row has a rank."""
        return any(row.rank for row in self.rows)

    @property
    def yardstick(self) -> Row | None:
        """Return the row that costs are shown relative to: of the method that the budget is written in.

        A budget like ``lora:r=8`` says which method the others are to be compared with; the code names none.
        """
        name = self.budget.partition(":")[0]
        found = [row for row in self.rows if row.method == name and ":" in self.budget]
        return found[0] if len(found) == 1 else None

    def difference(self, first: Row, second: Row) -> Difference | None:
        """Return one row's score minus another's, and how sure that is; ``None``: the two cannot be compared."""
        if self.analysis is None:
            return None
        places = self._places
        if first.label not in places or second.label not in places:
            return None
        return self.analysis.between(places[first.label], places[second.label])

    @cached_property
    def _places(self) -> dict[str, int]:
        return {
            estimate.method: place for place, estimate in enumerate(self.analysis.estimates if self.analysis else ())
        }

    def outcomes(self, row: Row) -> Mapping[str, int]:
        """Return how many other rows a row is proven better than, proven worse than, and not told apart from."""
        return self._outcomes.get(row.label, {"wins": 0, "ties": 0, "losses": 0})

    @cached_property
    def decided(self) -> Mapping[str, Sequence[Difference]]:
        """Return for each row, by its label, the pairs that are told apart, seen from that row."""
        found: dict[str, list[Difference]] = {row.label: [] for row in self.rows}
        for each in self.analysis.differences.values() if self.analysis else ():
            if each.is_separated:
                found[each.first].append(each)
                found[each.second].append(each.reversed())
        return found

    @cached_property
    def _outcomes(self) -> dict[str, dict[str, int]]:
        found = {row.label: {"wins": 0, "ties": 0, "losses": 0} for row in self.rows}
        for each in self.analysis.differences.values() if self.analysis else ():
            first, second = found[each.first], found[each.second]
            if not each.is_separated:
                first["ties"] += 1
                second["ties"] += 1
            else:
                first_wins = (each.difference > 0) is self.higher_is_better
                first["wins" if first_wins else "losses"] += 1
                second["losses" if first_wins else "wins"] += 1
        return found
