"""Records to boards."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness.contract.record import Record
from harness_leaderboard.boards.looks import notes_on_looks
from harness_leaderboard.boards.model import (
    Board,
    Failure,
    Row,
    TuningTrial,
    canonical,
    halves,
    has_no_budget,
    is_finished,
    is_reference,
)
from harness_leaderboard.boards.notes import board_notes, distinct_values, notes_on_published, notes_on_spelling
from harness_leaderboard.boards.rows import build_rows, by_score
from harness_leaderboard.boards.scores import bounds_of, chance_from, chance_of, scores_of
from harness_leaderboard.statistics.analysis import Analysis, Estimate, analyse

# Rows of a board may be ranked together only if these are equal in all of them.
COMPARABLE_FIELDS = ("recipe", "model_revision", "data", "precision", "quantize", "targets", "budget_parameters")


def build_boards(records: Iterable[Record]) -> list[Board]:
    """Return the boards, by task, scale, model and budget; the order of the records does not matter."""
    cells: dict[tuple[Any, ...], dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in sorted(records, key=lambda each: each.trial_id):
        trial = record.trial
        cell = (trial.task, trial.scale, trial.model, record.main_metric, record.higher_is_better)
        cells[cell]["" if has_no_budget(record) else trial.budget].append(record)
    boards: list[Board] = []
    for cell in sorted(cells):
        budgets = cells[cell]
        references = budgets.pop("", [])
        found = [_build_board(budget, budgets.get(budget, []), references) for budget in sorted(budgets) or [""]]
        boards += [replace(each, notes=(*notes_on_spelling(each, found), *each.notes)) for each in found]
    places = Counter(_place(each) for each in boards)
    return [replace(each, has_twin=places[_place(each)] > 1) for each in boards]


def _place(board: Board) -> tuple[str, str, str, str]:
    return board.task, board.scale, board.model, board.budget


def _build_board(budget: str, records: list[Record], reference_records: list[Record]) -> Board:
    everything = [*records, *reference_records]
    reference_records = [*reference_records, *(each for each in records if is_reference(each))]
    records = [each for each in records if not is_reference(each)]
    reports = [each for each in records if each.trial.purpose == "report"]
    rows = build_rows(reports, records, is_reference=False)
    reference_reports = [each for each in reference_records if each.trial.purpose == "report"]
    references, _ = _judged(build_rows(reference_reports, reference_records, is_reference=True), (), reference_records)
    matched = all(each.trial.is_matched for each in reports)  # else sizes differ by intention, and a note says so
    same = COMPARABLE_FIELDS if matched else [name for name in COMPARABLE_FIELDS if name != "budget_parameters"]
    differing = [name for name in same if len({canonical(getattr(each.trial, name)) for each in reports}) > 1]
    units = sorted({str(each.metric_details.get(each.main_metric, {}).get("unit", "")) for each in reports})
    plans = {row.looks for row in rows} - {None}
    reasons = [
        *differing,
        *(["the metric's unit"] if len(units) > 1 else []),
        *(["the plan of looks"] if len(plans) > 1 else []),
    ]
    ranked, analysis = _judged(rows, reasons, records)
    first = everything[0]
    budgets = {each.trial.budget_parameters for each in records}
    details: dict[str, Mapping[str, Any]] = {}
    for each in everything:
        details.update(each.metric_details)
    chosen = {(each.trial.cell, each.trial.learning_rate) for each in everything if each.trial.purpose == "report"}
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
        references=references,
        analysis=analysis,
        failures=tuple(_failure(each) for each in by_method if not is_finished(each)),
        tuning=_tuning([each for each in by_method if each.trial.purpose == "tune"], chosen),
        notes=(
            *notes_on_published([*ranked, *references]),
            *board_notes(ranked, differing, reports, everything),
            *notes_on_looks(ranked),
        ),
        differing=tuple(reasons),
        versions=distinct_values(everything),
        chance=None if reasons else chance_of([*ranked, *references]),
        chance_from=chance_from([*ranked, *references]),
        bounds=bounds_of([*ranked, *references]),
    )


def _judged(
    rows: Sequence[Row], differing: Sequence[str], everything: Sequence[Record]
) -> tuple[tuple[Row, ...], Analysis | None]:
    """Return rows in order of score with what may be claimed about each, and about them together."""
    if not rows:
        return (), None
    ordered = by_score(rows, rows[0].first.higher_is_better)
    analysis = analyse(scores_of(ordered, everything))
    judged = [
        replace(row, estimate=estimate, rank_reason=_why_not_ranked(row, estimate, differing))
        for row, estimate in zip(ordered, analysis.estimates, strict=True)
    ]
    # A mean over easier seeds may be higher than that of a method which wins on the seeds that both ran.
    judged.sort(key=lambda row: (row.score.value is None, row.rank is None, sum(row.rank or ())))
    return tuple(judged), None if differing or not analysis.differences else analysis


def _why_not_ranked(row: Row, estimate: Estimate, differing: Sequence[str]) -> str:
    """Return why a row gets no rank, or nothing. References are compared with no method, so no rank holds for them."""
    if row.is_reference:
        return row.beside
    if estimate.seeds == 0:
        return "no finished seed with a score"
    if differing:
        return f"the rows differ in {', '.join(differing)}"
    if estimate.seeds == 1:
        return "1 seed"
    if row.looks is not None and not row.looks.reached(row.ended):
        return f"its first look, at {row.looks.counts[0]} seeds, is not complete"
    return "nothing to compare with" if estimate.best_rank is None else ""


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


def _tuning(records: Sequence[Record], chosen: set[tuple[str, float]]) -> tuple[TuningTrial, ...]:
    spent = Counter((each.trial.search, each.trial.cell, each.trial.learning_rate) for each in records)
    longest: dict[str, int] = {}
    for (search, *_), count in spent.items():
        longest[search] = max(count, longest.get(search, 0))
    found = []
    for each in records:
        own = spent[each.trial.search, each.trial.cell, each.trial.learning_rate]
        most = longest[each.trial.search]
        found.append(_tuning_trial(each, chosen, own if halves(each) and own < most else None))
    return tuple(found)


def _tuning_trial(record: Record, chosen: set[tuple[str, float]], stopped_after: int | None) -> TuningTrial:
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
        trial_id=record.trial_id,
        stopped_after=stopped_after,
        is_chosen=(record.trial.cell, record.trial.learning_rate) in chosen,
    )
