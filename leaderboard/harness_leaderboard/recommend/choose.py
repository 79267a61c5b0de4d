"""Which configuration to use: across methods, budgets and rates, the cheapest that cannot be told apart from the best.

The best has the best mean score. Another configuration cannot be told apart from it where the test of this one pair
(``statistics``) says nothing at 5 %. That is stricter than a board, which corrects for all its pairs: a board must not
claim too much, a recommendation must not give too much away. Among those the smallest budget counts as cheapest, then
the shortest step, where up to a quarter more than the fastest is the same, then the better score.

What stands outside every budget, as full fine-tuning does, is no answer to the question which adapter to use. It is
said how the choice compares with it.

"Cannot be told apart" is weak evidence where little was measured, so a choice always comes with the interval of what
it may lose against the best, and with the difference that would have been seen.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.contract.record import Record
from harness_leaderboard.boards.cost import by_cost
from harness_leaderboard.boards.model import Row, canonical, has_no_budget, is_finished, is_reference
from harness_leaderboard.boards.rows import build_rows
from harness_leaderboard.boards.scores import chance_of, scores_of
from harness_leaderboard.statistics.analysis import Analysis, Difference, analyse

LEVEL = 0.05  # of the test of one pair
MOST_TOLD = 3  # larger budgets that a recommendation speaks of


@dataclass(frozen=True, kw_only=True)
class Other:
    """What something else brought: a larger budget, or a reference outside of all.

    Attributes:
        row: The best configuration at that budget, or the reference.
        difference: Its score less that of the choice; ``None``: the two cannot be compared.
    """

    row: Row
    difference: Difference | None


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What to use for one task, on one data set, with one base model.

    Attributes:
        rows: Every configuration that was compared, best score first, references outside every budget too.
        best: The one with the best mean, but for references.
        choice: The one to use.
        tied: All that cannot be told apart from the best, cheapest first; the best is one of them.
        loss: The score of the choice less that of the best; ``None``: they are the same, or cannot be compared.
        analysis: Of all rows.
        larger: What larger budgets brought.
        references: What stands outside every budget, and what it brought.
        record: The trial of the choice whose adapter to use.
        failed: How many trials ended without a score.
        why_not: Why nothing can be recommended with any confidence; empty: something can.
    """

    rows: tuple[Row, ...]
    best: Row
    choice: Row
    tied: tuple[Row, ...]
    loss: Difference | None
    analysis: Analysis
    larger: tuple[Other, ...]
    references: tuple[Other, ...]
    record: Record
    failed: int
    why_not: str = ""

    @property
    def at_whole_budget(self) -> Row | None:
        """Return the cheapest that cannot be told apart from the best and is as large as its budget asks, if any is."""
        return next((row for row in self.tied if not row.first.trial.largest), None)


def recommend(records: Iterable[Record]) -> list[Recommendation]:
    """Return a recommendation for each task, data set, scale, model and metric; none where nothing was scored."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        trial = record.trial
        fields = [trial.task, trial.scale, trial.model, record.main_metric, trial.data, trial.recipe, trial.precision]
        groups[canonical([*fields, trial.model_revision, trial.quantize])].append(record)
    found = (_recommend(groups[key]) for key in sorted(groups))
    return [each for each in found if each is not None]


def _recommend(records: Sequence[Record]) -> Recommendation | None:
    reports = [each for each in records if each.trial.purpose == "report"]
    rows: list[Row] = []
    for outside in (False, True):
        some = [each for each in reports if is_reference(each) is outside]
        rows += build_rows(some, [each for each in records if is_reference(each) is outside], is_reference=outside)
    rows = [row for row in rows if row.score.value is not None]
    if not rows:
        return None
    sign = 1 if rows[0].first.higher_is_better else -1
    rows.sort(key=lambda row: (-sign * (row.score.value or 0.0), row.label))
    analysis = analyse(scores_of(rows, records))
    beyond = [place for place, row in enumerate(rows) if has_no_budget(row.first)]
    inside = [place for place in range(len(rows)) if place not in beyond] or beyond
    best = inside[0]
    tied = [rows[place] for place in inside if place == best or _is_tied(analysis.between(best, place))]
    tied = by_cost(tied, sign)
    choice = tied[0]
    place = rows.index(choice)
    references = [
        Other(row=rows[each], difference=analysis.between(each, place)) for each in beyond if each not in inside
    ]
    return Recommendation(
        rows=tuple(rows),
        best=rows[best],
        choice=choice,
        tied=tuple(tied),
        loss=analysis.between(place, best),
        analysis=analysis,
        larger=_larger(rows, place, analysis),
        references=tuple(references),
        record=_shipped(choice, sign),
        failed=sum(not is_finished(each) for each in reports),
        why_not=_why_not(
            [rows[each] for each in inside],
            [analysis.estimates[each].beats_chance for each in inside],
            inside.index(place),
        ),
    )


def _is_tied(difference: Difference | None) -> bool:
    return difference is not None and not difference.is_separated and difference.p_value >= LEVEL


def _why_not(rows: Sequence[Row], beat_chance: Sequence[bool | None], chosen: int) -> str:
    """Return why nothing can be recommended with any confidence, of rows with the best score first."""
    if len(rows) == 1:
        return "one configuration was tried, so there is nothing to compare it with"
    if max(len(row.seed_scores) for row in rows) < 2:
        return "one seed cannot tell configurations apart; give --seeds 3"
    chance = chance_of(rows)
    if chance is None or beat_chance[chosen] is not False:
        return ""
    proven = [row for row, beats in zip(rows, beat_chance, strict=True) if beats]
    if not proven:
        return f"no configuration is told apart from guessing, which scores {chance:.4g}"
    guess = f"guessing, which scores {chance:.4g}"
    best = f"{proven[0].label}, budget {proven[0].first.trial.budget}"
    return f"all looked at together, it is not told apart from {guess}; the best that is: {best}"


def _larger(rows: Sequence[Row], chosen: int, analysis: Analysis) -> tuple[Other, ...]:
    """Return the best configuration of each larger budget."""
    own = rows[chosen].first.trial.adapter_parameters
    found: dict[int, Other] = {}
    for place, row in enumerate(rows):  # best score first
        trial, budget = row.first.trial, row.first.trial.budget_parameters
        if budget is not None and not trial.largest and budget > own * 1.02 and budget not in found:
            found[budget] = Other(row=row, difference=analysis.between(place, chosen))
    return tuple(found[budget] for budget in sorted(found))[:MOST_TOLD]


def _shipped(row: Row, sign: int) -> Record:
    """Return the seed whose adapter to use: the best on validation, where its record says so, else on test."""
    finished = [each for each in row.records if is_finished(each) and each.score is not None]

    def judged(record: Record) -> float:
        name = record.main_metric  # the curves are of validation
        seen = {step["step"]: step["metrics"][name] for step in record.history if name in step["metrics"]}
        kept = record.counts.get("checkpoint_step")  # of several updates, the one that the adapter is of
        return float(seen[kept if kept in seen else max(seen)] if seen else record.score or 0.0)

    return max(finished, key=lambda each: sign * judged(each))
