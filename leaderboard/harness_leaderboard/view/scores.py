"""A board's main table: its columns, its cells, and the notes below it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from harness.results.wording import parameters_text
from harness_leaderboard.boards.model import PAPER_SCALE, Board, Published, Row, Summary, is_finished
from harness_leaderboard.statistics import NOTHING
from harness_leaderboard.statistics.error import Interval
from harness_leaderboard.view.model import MISSING, Cell, Column, Grid
from harness_leaderboard.view.text import (
    bytes_text,
    many,
    model_text,
    percent_text,
    rank_text,
    rounded_text,
    seconds_text,
    slug_of,
    value_text,
)

MOST_NAMES = 12  # of rows that one note lists
ALWAYS = ("rank", "method", "score", "seeds", "learning_rate", "parameters")  # columns shown even if without a value
COST_NOTE = (
    "Step, tokens per second, GFLOPs and memory are of a few updates of the same trial run alone, without data "
    "preparation and evaluation; never of a pack."
)


def cost_notes(board: Board) -> tuple[str, ...]:
    """Return how times and memory came about: a trial's share of a pack's time is not what it takes alone."""
    counts = {lanes for row in board.all_rows for lanes in row.lanes}
    if counts <= {1}:
        return (COST_NOTE,)
    most = max(counts)
    at_once = f"{most}" if len(counts) == 1 else f"{min(counts)} to {most}"
    return (
        COST_NOTE,
        f"Training is each trial's share of the time of those that trained together, {at_once} at once: alone it takes "
        "longer, and methods that trained in one pack seem to take the same.",
    )


def metric_title(board: Board, name: str) -> str:
    """Return a metric's title with its unit."""
    details = board.metric_details.get(name, {})
    title, unit = str(details.get("title") or name), str(details.get("unit") or "")
    is_said = unit == "fraction" or title.lower().endswith(unit.lower())  # "Matthews correlation", in "correlation"
    return title if is_said else f"{title} ({unit})"


def scores_grid(board: Board) -> Grid:
    """Return the main table: rows by score, references at the foot."""
    decimals = score_decimals(board)
    rows = [_cells(board, row, decimals) for row in board.all_rows]
    every = _columns(board)
    shown = tuple(  # a column without a value says nothing that its footnote does not
        column for column in every if column.key in ALWAYS or any(not cells[column.key].is_missing for cells in rows)
    )
    lines = tuple(tuple(cells[column.key] for column in shown) for cells in rows)
    count = len(board.rows)
    order = ", by rank, then by score" if board.is_ranked else ""
    return Grid(
        caption=f"{metric_title(board, board.main_metric)} by method{order}.",
        columns=shown,
        rows=lines[:count],
        foot=lines[count:],
        foot_title=_foot_title(board),
        notes=tuple(_footnotes(board, every, rows)),
    )


def _foot_title(board: Board) -> str:
    kinds = {row.first.trial.largest for row in board.references}
    titles = ["Reference, outside the budget"] * (False in kinds) + ["Too small for the budget"] * (True in kinds)
    return "; ".join(titles)


def score_decimals(board: Board) -> int:
    """Return how many decimals suit the sharpest interval of what the board compares."""
    rows = board.rows or board.references
    halves = [(row.interval.high - row.interval.low) / 2 for row in rows if row.interval]
    values = [abs(row.score.value) for row in rows if row.score.value is not None]
    sharpest = min((half for half in halves if half > 0), default=0.005 * max([*values, 1e-6]))
    return min(6, max(1, 1 - math.floor(math.log10(sharpest))))


def interval_text(interval: Interval | None, decimals: int) -> str:
    """Return an interval, or that there is none."""
    if interval is None:
        return MISSING
    return f"[{interval.low:.{decimals}f}, {interval.high:.{decimals}f}]".replace("-", "−")


def _columns(board: Board) -> tuple[Column, ...]:
    arrow = "higher is better" if board.higher_is_better else "lower is better"
    papers = dict.fromkeys(model_text(row.published_score.model) for row in board.all_rows if row.published_score)
    published = Column(
        key="published",
        title=", ".join(["Published", *papers]),
        help="What a paper reports for this method and budget, with this base model",
        is_number=True,
    )
    relative = board.yardstick
    column = Column
    return (
        column(
            key="rank",
            title="Rank",
            help="Best and worst rank that the comparison of all pairs leaves open",
            is_number=True,
        ),
        column(
            key="group",
            title="Group",
            help="Methods that share a letter are not told apart, those that share none differ",
        ),
        column(key="method", title="Method", help="The fine-tuning method"),
        column(
            key="score", title=metric_title(board, board.main_metric), help=f"Mean over seeds; {arrow}", is_number=True
        ),
        column(
            key="new_items", title="95 %, new items", help="Where the mean would be with other seeds and other items"
        ),
        column(
            key="these_items", title="95 %, these items", help="Where the mean would be with other seeds, same items"
        ),
        *((published,) if papers else ()),
        column(key="seeds", title="Seeds", help="Finished seeds of those started", is_number=True),
        column(
            key="learning_rate",
            title="Learning rate",
            help="Peak learning rate of the adapter, and how many trials it was chosen in",
            is_number=True,
        ),
        column(key="parameters", title="Adapter parameters", help="Trained adapter parameters", is_number=True),
        column(key="deviation", title="Off budget", help="Adapter parameters against the budget", is_number=True),
        column(
            key="train",
            title="Training",
            help="Optimizer steps only; a pack's time is shared by its lanes; mean over seeds",
            is_number=True,
        ),
        column(key="step", title="Step, solo", help="Milliseconds per update, alone", is_number=True),
        *(
            (
                column(
                    key="relative",
                    title=f"Step / {relative.method}",
                    help=f"Step time alone, as a multiple of {relative.method}'s at the same budget",
                    is_number=True,
                ),
            )
            if relative
            else ()
        ),
        column(key="tokens", title="Tokens/s, solo", help="Training tokens per second, alone", is_number=True),
        column(
            key="flops", title="GFLOPs/step", help="Billions of floating-point operations per update", is_number=True
        ),
        column(key="memory", title="Peak memory, solo", help="Most memory in use during an update", is_number=True),
        column(
            key="tuning",
            title="Tuning trials",
            help="Trials spent before, to choose the learning rate and what else was searched",
            is_number=True,
        ),
        column(key="states", title="Trials", help="How the report trials ended"),
    )


def _cells(board: Board, row: Row, decimals: int) -> dict[str, Cell]:
    trial, finished, deviation = row.first.trial, len(row.seed_scores), row.budget_deviation_fraction
    step = row.costs["step_seconds_solo"]
    estimate = row.estimate
    return {
        "rank": _rank_cell(row),
        "group": _group_cell(row),
        "method": Cell(
            text=row.label,
            sort=row.label,
            link=f"methods/{slug_of(row.method)}.html",
            below=layers_note(row),
        ),
        "score": _number(row.score, lambda value: f"{value:.{decimals}f}"),
        "new_items": _interval_cell(
            row, estimate.new_items if estimate else None, decimals, "the records keep no items"
        ),
        "these_items": _interval_cell(row, estimate.these_items if estimate else None, decimals, "1 seed"),
        "published": _published_cell(row.published_score),
        "seeds": Cell(
            text=f"{finished}" if finished == len(row.records) else f"{finished} of {len(row.records)}", sort=finished
        ),
        "learning_rate": Cell(text=MISSING, note="nothing trained, at whatever rate")
        if (rate := row.first.learning_rate) is None
        else Cell(
            text=f"{rate:g}",
            sort=rate,
            below=many(row.tune_trials, "trial") if row.tune_trials else "not searched",
        ),
        "parameters": Cell(text=parameters_text(trial), sort=trial.adapter_parameters),
        "deviation": Cell(text=MISSING, note=row.beside or "no budget to match")
        if deviation is None
        else Cell(text=percent_text(deviation, signed=True), sort=deviation),
        "train": _number(row.costs["train_seconds"], seconds_text, below=_together(row)),
        "step": _number(step, lambda value: f"{value * 1000:.3g} ms"),
        "relative": _relative(board, step),
        "tokens": _number(row.costs["tokens_per_second_solo"], rounded_text),
        "flops": _number(row.costs["step_flops"], lambda value: rounded_text(value / 1e9)),
        "memory": _number(row.costs["peak_memory_bytes"], bytes_text),
        "tuning": Cell(text=f"{row.tune_trials}", sort=row.tune_trials),
        "states": Cell(text=states_text(row), sort=states_text(row)),
    }


def _rank_cell(row: Row) -> Cell:
    if row.is_reference:
        return Cell(text="small" if row.first.trial.largest else "ref.", note=row.beside)
    if row.rank is None:
        return Cell(text=MISSING, note=f"not ranked: {row.rank_reason}")
    return Cell(text=rank_text(row.rank), sort=row.rank[0] + row.rank[1] / 1000)


def _group_cell(row: Row) -> Cell:
    letters = row.estimate.letters if row.rank and row.estimate else ""
    return Cell(text=letters, sort=letters) if letters else Cell(text=MISSING)


def layers_note(row: Row) -> str:
    """Return that single layers have other settings than the row's, if any has."""
    count = len(row.first.trial.layer_settings)
    own = "has settings of its own" if count == 1 else "have settings of their own"
    return f"{many(count, 'layer')} {own}" if count else ""


def _interval_cell(row: Row, interval: Interval | None, decimals: int, reason: str) -> Cell:
    if row.score.value is None:
        return Cell(text=MISSING, note=row.score.reason)
    if interval is None:
        return Cell(text=MISSING, note="1 seed" if row.score.count < 2 else reason)
    note = ""
    is_exact = row.estimate is not None and row.estimate.seed_deviation == 0
    if is_exact and interval.high - interval.low < NOTHING:
        note = "seeds that agree exactly give no width; that is no certainty"
    return Cell(text=interval_text(interval, decimals), sort=interval.high - interval.low, note=note)


def _relative(board: Board, step: Summary) -> Cell:
    base = board.yardstick.costs["step_seconds_solo"].value if board.yardstick else None
    if not base or step.value is None:
        return Cell(text=MISSING, note=step.reason or "the method to compare with has no step time")
    return Cell(text=f"{step.value / base:.2f}×", sort=step.value / base)


def _together(row: Row) -> str:
    """Return how many trials trained at once, since that is what the training time depends on."""
    finished, lanes = [record for record in row.records if is_finished(record)], row.lanes
    parts = [f"{' or '.join(map(str, lanes))} at once"] if lanes and lanes != [1] else []
    return ", ".join([*parts, *(["compiled"] if any(record.cost.get("compiled") for record in finished) else [])])


def _number(summary: Summary, text: Callable[[float], str], below: str = "") -> Cell:
    if summary.value is None:
        return Cell(text=MISSING, note=summary.reason)
    return Cell(text=text(summary.value), sort=summary.value, note=summary.reason, below=below)


def _published_cell(published: Published | None) -> Cell:
    """Return a paper's number, with its source and why it is not ours to compare."""
    if published is None:
        return Cell(text=MISSING, note="the suite quotes no number for this method and budget")
    at = f" at step {published.step:,}" if published.step is not None else ""
    about = (published.source, paper_text(published), published.confidence, published.caveat)
    note = "; ".join(each for each in about if each)
    if published.differences:
        note += f". Not comparable: {'; '.join(published.differences)}"
    below = f"{model_text(published.model)}, {PAPER_SCALE} scale"
    return Cell(text=value_text(published.value) + at, sort=published.value, note=note, below=below)


def paper_text(published: Published) -> str:
    """Return what a published number is of: the paper's model, what it trained, and that it is at the paper's scale."""
    trained = f"budget {published.budget}" if published.budget else "all parameters"
    return f"{published.model or 'model not recorded'}, {trained}, {PAPER_SCALE} scale"


def states_text(row: Row) -> str:
    """Return how a row's trials ended, e.g. ``4 complete, 1 diverged``."""
    return ", ".join(f"{count} {state.value.replace('_', ' ')}" for state, count in row.states.items())


def _footnotes(board: Board, columns: Sequence[Column], lines: Sequence[Mapping[str, Cell]]) -> list[str]:
    """Return why values of the table are missing or partial: the column, the reason, the rows."""
    who: dict[tuple[str, str], list[str]] = {}
    for row, cells in zip(board.all_rows, lines, strict=True):
        for column in columns:
            cell = cells[column.key]
            is_plain = row.is_reference and not row.first.trial.largest
            is_said_below = is_plain and column.key in ("rank", "deviation")  # "ref." says it
            is_reason = cell.sort is None or "items" in column.key or cell.note.startswith("from ")
            if cell.note and is_reason and not is_said_below:
                who.setdefault((column.title, cell.note), []).append(row.label)
    return grouped_notes(who, len(board.all_rows))


def grouped_notes(who: Mapping[tuple[str, str], Sequence[str]], count: int) -> list[str]:
    """Return one line for each reason: the columns, the reason, and for which of ``count`` rows it is true."""
    where: dict[tuple[str, str], list[str]] = {}
    for (column, reason), labels in who.items():
        rows = "all rows" if len(labels) == count > 3 else listed(labels)
        where.setdefault((reason, rows), []).append(column)
    return [f"{'; '.join(found)}: {reason} ({rows})" for (reason, rows), found in where.items()]


def listed(labels: Sequence[str]) -> str:
    """Return some names, and how many more there are."""
    shown = ", ".join(labels[:MOST_NAMES])
    return shown if len(labels) <= MOST_NAMES else f"{shown} and {len(labels) - MOST_NAMES} more"
