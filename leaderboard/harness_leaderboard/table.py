"""A board as a table of words: the columns, the number formats and the sentences that every output shares.

Also the plain table for a terminal. HTML, Markdown, CSV and LaTeX are written in ``build``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from harness.contract.record import Record
from harness_leaderboard.board import PAPER_SCALE, Board, Failure, Published, Row, Summary, build_boards
from harness_leaderboard.family import Family, build_families

MISSING = "—"
COST_NOTE = (
    "Step, tokens per second, GFLOPs and memory are of a few updates of the same trial run alone, without data "
    "preparation and evaluation; never of a pack."
)


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: its head, what it means, and whether it holds numbers."""

    key: str
    title: str
    help: str
    is_number: bool = True


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell: what is shown, what sorts, a note (why missing, what it omits), a link."""

    text: str
    sort: float | str | None
    note: str = ""
    link: str = ""

    @property
    def is_missing(self) -> bool:
        """Whether there is no value to show."""
        return self.text == MISSING


def columns(board: Board) -> tuple[Column, ...]:
    """Return the columns of a board's table, in order."""
    arrow = "higher is better" if board.higher_is_better else "lower is better"
    published = Column(
        key="published",
        title=", ".join(["Published", *published_models(board)]),
        help="What a paper reports for this method and budget, with this base model",
    )
    return (
        Column(key="rank", title="Rank", help="Rows with the same rank cannot be told apart (=)"),
        Column(key="method", title="Method", help="The fine-tuning method", is_number=False),
        Column(key="score", title=metric_title(board, board.main_metric), help=f"Mean over seeds; {arrow}"),
        Column(
            key="interval",
            title="95 % interval",
            help="Of the mean, for other seeds (Student's t)",
            is_number=False,
        ),
        *((published,) if has_published(board) else ()),
        Column(key="seeds", title="Seeds", help="Finished seeds of those started"),
        Column(key="learning_rate", title="Learning rate", help="Peak learning rate of the adapter"),
        Column(key="parameters", title="Adapter parameters", help="Trained adapter parameters"),
        Column(key="deviation", title="Off budget", help="Adapter parameters against the budget"),
        Column(
            key="train",
            title="Training",
            help="Optimizer steps only; a pack's time is shared by its lanes; mean over seeds",
        ),
        Column(key="step", title="Step, solo", help="Milliseconds per update, alone"),
        Column(key="tokens", title="Tokens/s, solo", help="Training tokens per second, alone"),
        Column(key="flops", title="GFLOPs/step", help="Floating-point operations of one update, in billions"),
        Column(key="memory", title="Peak memory, solo", help="Most memory in use during an update, alone"),
        Column(key="tuning", title="Tuning trials", help="Learning-rate trials spent before"),
        Column(key="states", title="Trials", help="How the report trials ended", is_number=False),
    )


def cells(board: Board, row: Row) -> dict[str, Cell]:
    """Return one row's cells by column key."""
    trial = row.first.trial
    finished = len(row.seed_scores)
    if row.is_reference:
        rank = Cell(text="ref.", sort=None, note="reference, outside the budget")
    elif row.rank:
        rank = Cell(text=row.rank, sort=float(row.rank.rstrip("=")))
    else:
        rank = Cell(text=MISSING, sort=None, note=f"not ranked: {row.rank_reason}")
    deviation = row.budget_deviation_fraction
    return {
        "rank": rank,
        "method": Cell(text=row.label, sort=row.label),
        "score": _number(row.score, lambda value: score_text(board, value)),
        "interval": interval_cell(board, row.score),
        "published": published_cell(row.published_score),
        "seeds": Cell(
            text=f"{finished}" if finished == len(row.records) else f"{finished} of {len(row.records)}",
            sort=finished,
        ),
        "learning_rate": Cell(text=f"{trial.learning_rate:g}", sort=trial.learning_rate),
        "parameters": Cell(text=f"{trial.adapter_parameters:,}", sort=trial.adapter_parameters),
        "deviation": Cell(
            text=MISSING,
            sort=None,
            note="reference, outside the budget" if row.is_reference else "no budget recorded",
        )
        if deviation is None
        else Cell(text=f"{deviation:+.2%}".replace("%", " %").replace("-", "−"), sort=deviation),
        "train": _number(row.costs["train_seconds"], seconds_text),
        "step": _number(row.costs["step_seconds_solo"], lambda value: f"{value * 1000:.3g} ms"),
        "tokens": _number(row.costs["tokens_per_second_solo"], rounded_text),
        "flops": _number(row.costs["step_flops"], lambda value: rounded_text(value / 1e9)),
        "memory": _number(row.costs["peak_memory_bytes"], bytes_text),
        "tuning": Cell(
            text=f"{row.tune_trials}",
            sort=row.tune_trials,
            note="" if row.tune_trials else "learning rate not searched",
        ),
        "states": Cell(text=states_text(row), sort=states_text(row)),
    }


def _number(summary: Summary, text: Callable[[float], str]) -> Cell:
    if summary.value is None:
        return Cell(text=MISSING, sort=None, note=summary.reason)
    return Cell(text=text(summary.value), sort=summary.value, note=summary.reason)


def has_published(board: Board) -> bool:
    """Return whether a paper reports the main metric for any row."""
    return any(row.published_score is not None for row in board.all_rows)


def published_models(board: Board) -> list[str]:
    """Return the base models of the published main metrics, without their owners."""
    found = [row.published_score.model for row in board.all_rows if row.published_score]
    return list(dict.fromkeys(model_text(each) for each in found))


def model_text(model: str) -> str:
    """Return a model's name without its owner or folder; what is trained from scratch keeps its task."""
    if not model:
        return "model not recorded"
    return model if model.startswith("from-scratch/") else model.rstrip("/").rsplit("/", 1)[-1]


def published_of(row: Row) -> str:
    """Return what the published main metric of a row is of, in few words; nothing where there is none."""
    return f"{model_text(row.published_score.model)}, {PAPER_SCALE} scale" if row.published_score else ""


def paper_text(published: Published) -> str:
    """Return what a published number is of: the paper's model, what it trained, and that it is at the paper's scale."""
    trained = f"budget {published.budget}" if published.budget else "all parameters"
    return f"{published.model or 'model not recorded'}, {trained}, {PAPER_SCALE} scale"


def ours_text(row: Row) -> str:
    """Return the same of ours."""
    trial = row.first.trial
    return f"{trial.model}, {trial.adapter_parameters:,} parameters, {trial.scale} scale"


def published_cell(published: Published | None) -> Cell:
    """Return a paper's number, with its source and why it is not ours to compare."""
    if published is None:
        return Cell(text=MISSING, sort=None, note="the suite quotes no number for this method and budget")
    at = f" at step {published.step:,}" if published.step is not None else ""
    note = "; ".join(
        each for each in (published.source, paper_text(published), published.confidence, published.caveat) if each
    )
    if published.differences:
        note += f". Not comparable: {'; '.join(published.differences)}"
    return Cell(text=value_text(published.value) + at, sort=published.value, note=note)


def interval_cell(board: Board, summary: Summary) -> Cell:
    """Return the interval of a score, or in words why there is none."""
    if summary.value is None:
        return Cell(text=MISSING, sort=None, note=summary.reason)
    if summary.interval is None:
        return Cell(text="1 seed: no interval", sort=None)
    if summary.interval.low == summary.interval.high:
        note = "seeds that agree exactly give no width; that is no certainty"
        return Cell(text=f"{summary.count} seeds, all equal", sort=0.0, note=note)
    low, high = (score_text(board, each) for each in (summary.interval.low, summary.interval.high))
    return Cell(text=f"[{low}, {high}]", sort=summary.interval.high - summary.interval.low)


def score_text(board: Board, value: float) -> str:
    """Return a main-metric value with decimals that suit the board's sharpest interval."""
    halves = [(row.score.interval.high - row.score.interval.low) / 2 for row in board.all_rows if row.score.interval]
    values = [abs(row.score.value) for row in board.all_rows if row.score.value is not None]
    sharpest = min((half for half in halves if half > 0), default=0.005 * max([*values, 1e-6]))
    decimals = min(6, max(1, 1 - math.floor(math.log10(sharpest))))
    return f"{value:.{decimals}f}"


def value_text(value: float) -> str:
    """Return any other metric's value with four significant digits."""
    return f"{value:.4g}"


def rounded_text(value: float) -> str:
    """Return a count with three significant digits and no exponent, e.g. ``81,900`` or ``0.0412``."""
    if value == 0:
        return "0"
    return f"{round(value, 2 - math.floor(math.log10(abs(value)))):,.10g}"


def seconds_text(seconds: float) -> str:
    """Return a duration, e.g. ``8.31 s``, ``4 min 10 s``, ``2 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def bytes_text(count: float) -> str:
    """Return a size, e.g. ``412 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}" if count < 1000 else f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def states_text(row: Row) -> str:
    """Return how a row's trials ended, e.g. ``4 complete, 1 diverged``."""
    return ", ".join(f"{count} {state.value.replace('_', ' ')}" for state, count in row.states.items())


def signed_text(value: float) -> str:
    """Return a difference with its sign, four significant digits."""
    return f"{value:+.4g}".replace("-", "−")


def p_value_text(p_value: float) -> str:
    """Return a p-value, e.g. ``0.031`` or ``< 0.001``."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def layer_settings_text(row: Row) -> str:
    """Return the settings that differ on single layers, or nothing."""
    layers = row.first.trial.layer_settings
    parts = [
        f"{layer}: {', '.join(f'{key}={value}' for key, value in sorted(layers[layer].items()))}"
        for layer in sorted(layers)
    ]
    return "; ".join(parts)


def recipe_text(row: Row) -> str:
    """Return the task's recipe that a row trained with; settings that are off (0 or empty) are left out."""
    recipe = row.first.trial.recipe
    return ", ".join(f"{key}={recipe[key]}" for key in sorted(recipe) if recipe[key] not in (0, "", None, [], ()))


def metric_title(board: Board, name: str) -> str:
    """Return a metric's title with its unit."""
    details = board.metric_details.get(name, {})
    title, unit = str(details.get("title") or name), str(details.get("unit") or "")
    return f"{title} ({unit})" if unit and unit != "fraction" else title


def board_title(board: Board) -> str:
    """Return a board's heading."""
    return f"{board.task} · {board_context(board)}"


def board_context(board: Board) -> str:
    """Return what a board's heading says besides the task."""
    parts = [board.scale, board.model, f"budget {board.budget}" if board.budget else "references only"]
    if board.has_twin:
        parts.append(f"by {board.main_metric}, {'higher' if board.higher_is_better else 'lower'} is better")
    return " · ".join(parts)


def footnotes(board: Board) -> list[str]:
    """Return why values of the table are missing or partial: the column, the reason, the rows."""
    who: dict[tuple[str, str], list[str]] = {}
    for row in board.all_rows:
        shown = cells(board, row)
        for column in columns(board):
            cell = shown[column.key]
            is_said_below = row.is_reference and column.key in ("rank", "deviation")  # "ref." says it
            is_reason = cell.sort is None or column.key == "interval" or cell.note.startswith("from ")
            if cell.note and is_reason and not is_said_below:
                who.setdefault((column.title, cell.note), []).append(row.label)
    return grouped_notes(who, len(board.all_rows))


def grouped_notes(who: Mapping[tuple[str, str], Sequence[str]], count: int) -> list[str]:
    """Return one line for each reason: the columns, the reason, and for which of ``count`` rows it is true."""
    where: dict[tuple[str, str], list[str]] = {}
    for (column, reason), labels in who.items():
        rows = "all rows" if len(labels) == count > 3 else ", ".join(labels)
        where.setdefault((reason, rows), []).append(column)
    return [f"{'; '.join(found)}: {reason} ({rows})" for (reason, rows), found in where.items()]


def summary_sentences(board: Board) -> list[str]:
    """Return what is compared, at which budget, over how many seeds, and what a tie means here."""
    count = len({row.method for row in board.rows})
    sentences = []
    if board.rows:
        asked = f" ({board.budget_parameters:,} trained adapter parameters)" if board.budget_parameters else ""
        off = [abs(row.budget_deviation_fraction) for row in board.rows if row.budget_deviation_fraction is not None]
        reached = ""
        if off:
            reached = f", reached within {max(off):.2%}".replace("%", " %") if max(off) else ", reached exactly"
        sentences.append(f"{_many(count, 'method')} at the same budget, {board.budget}{asked}{reached}.")
    else:
        sentences.append("Only reference methods, outside any budget: nothing is ranked.")
    direction = "higher" if board.higher_is_better else "lower"
    seeds = board.seeds
    if len({tuple(each.trial.seed for each in row.records) for row in board.rows}) > 1:
        over = "each method's own seeds, which are not the same for all"
    else:
        listed = f" ({', '.join(map(str, seeds))})" if len(seeds) <= 10 else ""
        over = f"{_many(len(seeds), 'seed')}{listed}"
    sentences.append(f"Score: mean {metric_title(board, board.main_metric)} over {over}; {direction} is better.")
    if board.is_ranked:
        sentences.append(
            "Rows with the same rank cannot be told apart from the best of them "
            f"(paired test, 5 % level, corrected for {_many(board.comparisons, 'pair')})."
        )
    elif board.rows:
        reasons = dict.fromkeys(row.rank_reason for row in board.rows)
        sentences.append(f"Not ranked: {'; '.join(reasons)}. Rows are in order of score, which is no ranking.")
    if any(board.item_limits):
        sentences.append(f"{limit_text(board)}: not the whole data.")
    if board.detectable_difference is not None:
        sentences.append(power_text(board.detectable_difference, is_fraction(board)))
    return sentences


def is_fraction(board: Board) -> bool:
    """Return whether the score lies between 0 and 1."""
    return board.metric_details.get(board.main_metric, {}).get("unit") == "fraction"


def power_text(difference: float, fraction: bool) -> str:
    """Return how much two methods must differ for a board to find it."""
    if fraction and difference >= 1:
        return "So few seeds cannot tell a typical pair of methods apart (80 % power): run more."
    return (
        f"A typical pair of methods must truly differ by about {difference:.2g} for this board to tell them apart "
        "(80 % power); a pair with less noise, by less."
    )


def limit_text(board: Board) -> str:
    """Return on how much of the data a board's rows were scored, or nothing if on all of it."""
    if not any(board.item_limits):
        return ""
    return f"Evaluated on {' or '.join(f'{each:,}' if each else 'all' for each in board.item_limits)} items per set"


def leaders_text(board: Board) -> str:
    """Return who leads a board, in words."""
    leaders = [row.label for row in board.rows if row.group == 1]
    if not leaders:
        return "not ranked"
    others = sum(row.group is not None for row in board.rows) - len(leaders)
    if len(leaders) == 1:
        return f"{leaders[0]}, ahead of {others}"
    # Only the first was tested against the others; a noisy method may be tied with it and ahead of nobody.
    return f"{', '.join(leaders)} (tied" + (f"; {leaders[0]} is ahead of {others})" if others else ")")


def terminal_table(records: Iterable[Record]) -> str:
    """Return every board as plain text, for a terminal."""
    boards = build_boards(records)
    if not boards:
        return "No records."
    families = [_terminal_family(each) for each in build_families(boards)]
    return "\n\n".join([*(_terminal_board(board) for board in boards), *families])


def family_heads(family: Family) -> list[str]:
    """Return the column heads of a family's table."""
    return ["Method", "Average", *(f"{task.removeprefix(f'{family.name}/')}" for task in family.tasks), "Without"]


def family_cells(family: Family) -> list[list[Cell]]:
    """Return a family's table: the average, every task that counts, and which tasks a method lacks."""
    return [
        [
            Cell(text=f"{line.method} (reference)" if line.is_reference else line.method, sort=line.method),
            Cell(text=MISSING, sort=None, note="no task that every method has")
            if line.average is None
            else Cell(text=f"{line.average:#.4g}", sort=line.average),
            *(Cell(text=f"{value:#.4g}", sort=value) for value in line.scores),
            Cell(text=", ".join(task.removeprefix(f"{family.name}/") for task in line.missing) or "none", sort=None),
        ]
        for line in family.lines
    ]


def family_title(family: Family) -> str:
    """Return a family's heading."""
    return f"{family.name}, {family_context(family)}"


def family_context(family: Family) -> str:
    """Return what a family's heading says besides its name."""
    budget = f"budget {family.budget}" if family.budget else "references only"
    tasks = f"average over {len(family.tasks)} of {_many(family.task_count, 'task')}"
    return f"{tasks} · {family.scale} · {family.model} · {budget}"


def family_sentence(family: Family) -> str:
    """Return what is averaged and what is left out."""
    left = ", ".join(family.left_out)
    parts = ["Mean of each task's main metric, in order of the mean, which is no ranking."]
    parts.append(
        f"Left out, since not every method has all seeds of it, or its trials are not one comparison: {left}."
        if left
        else "Every task counts."
    )
    if len(family.units) > 1:
        parts.append(f"The metrics' units differ: {', '.join(family.units)}.")
    if family.is_partial:
        parts.append("Some tasks were scored on a part of their items: not the whole data.")
    return " ".join(parts)


def _terminal_family(family: Family) -> str:
    body = [[printable(cell.text) for cell in line] for line in family_cells(family)]
    heads = [printable(each) for each in family_heads(family)]
    grid = tabulate(body, headers=heads, disable_numparse=True, tablefmt="simple")
    return "\n".join([printable(family_title(family)), printable(family_sentence(family)), "", grid])


def _terminal_board(board: Board) -> str:
    keys = (
        "rank",
        "method",
        "score",
        "interval",
        "published",
        "seeds",
        "learning_rate",
        "parameters",
        "train",
        "memory",
        "states",
    )
    shown = [column for column in columns(board) if column.key in keys]
    body: list[list[str]] = [_line(board, row, shown) for row in board.rows]
    body += [_line(board, row, shown) for row in board.references]
    align = ["right" if column.is_number else "left" for column in shown]
    lines = [board_title(board), *summary_sentences(board)]
    if body:
        heads = [column.title for column in shown]
        heads = [printable(each) for each in heads]
        grid = tabulate(body, headers=heads, colalign=align, disable_numparse=True, tablefmt="simple")
        lines += ["", *grid.splitlines()]
    if board.references:
        lines.append("ref.: reference, outside the budget")
    if board.is_ranked:
        lines += [f"{row.label}: not ranked: {row.rank_reason}" for row in board.rows if not row.rank]
    if board.failures:
        lines += ["", f"{_many(len(board.failures), 'trial')} did not finish:"]
        lines += [f"  {failure_text(each)}" for each in board.failures]
    lines += [f"! {note}" for note in board.notes]
    return "\n".join(printable(line) for line in lines)


def _line(board: Board, row: Row, shown: Sequence[Column]) -> list[str]:
    values = cells(board, row)
    return [printable(values[column.key].text) for column in shown]


def failure_text(failure: Failure) -> str:
    """Return one line about a trial that did not finish."""
    where = f" at step {failure.step}" if failure.step is not None else ""
    why = ": ".join(part for part in (failure.error_type, failure.message) if part) or "no error recorded"
    run = f"{failure.method}, {failure.purpose}, lr {failure.learning_rate:g}, seed {failure.seed}"
    return f"{run}: {failure.state.value.replace('_', ' ')}{where}: {why}"


def printable(text: str) -> str:
    """Replace control and direction characters: a record must not steer a terminal, turn numbers or forge lines."""
    return "".join(each if each.isprintable() else " " for each in text)


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
