"""Write docs/first-results.md from the records beside this file: every number of it is computed here.

    python benchmarks/results/report.py [--check]

With ``--check`` nothing is written, and the exit code says whether the page is what the records say.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.planning.suite import read_suite
from harness_leaderboard.boards.build import build_boards
from harness_leaderboard.boards.model import Board, Row
from harness_leaderboard.load import load
from harness_leaderboard.statistics.analysis import Difference
from harness_leaderboard.statistics.error import Interval

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "first-results.md"
SUITES = HERE.parent / "harness_benchmarks" / "suites"
BESIDE = "full", "frozen"
COUNTS = "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"


@dataclass(frozen=True)
class Statement:
    """What a paper says of two methods, and the suite that holds its numbers, if it has numbers on these tasks."""

    method: str
    than: str
    words: str
    suite: str = ""


STATEMENTS = (
    Statement("pissa", "lora", "PiSSA scores higher than LoRA (PiSSA, table 2: 14 of 16 cells)", "pissa-table2-roberta-large"),
    Statement("dora", "lora", "DoRA scores higher than LoRA (DoRA, on commonsense reasoning and others; not on GLUE)"),
    Statement("milora", "lora", "MiLoRA scores higher than LoRA (MiLoRA, tables 1 to 3; not on GLUE)"),
    Statement("mora", "lora", "MoRA does about as well as LoRA where nothing has to be memorised (MoRA, table 1)"),
    Statement("melora", "lora", "MELoRA scores higher than LoRA (MELoRA, table 2)"),
    Statement("relora", "lora", "ReLoRA is made for pretraining; its paper fine-tunes nothing"),
    Statement("remora", "mora", "Merging helps MoRA in pretraining (MoRA, section 4.4); not said of fine-tuning"),
)  # fmt: skip

INTRO = """# First results

<!-- Written by benchmarks/results/report.py from the records beside it; edit that file, not this one. -->

What nine methods do, eight of them at one budget, on {count} sets of GLUE, tuned, with five seeds each: {trials:,} trials, {searched:,} of
them to search learning rates, trained for {minutes:.0f} minutes in all on one {cards}. The base is all-MiniLM-L6-v2, an encoder of 22.7 million
parameters; each method trains {parameters} parameters on queries and values for 1,000 updates of 32 texts, in bfloat16.
The commands, data and licences are [beside the records](../benchmarks/results/README.md); `harness leaderboard
benchmarks/results` makes the page with every interval, curve and trial. How the intervals are made is in [fairness](fairness.md).

This is a small encoder and short training. Nothing here speaks of language models, which come next, or of larger budgets.
"""


def boards() -> list[Board]:
    """Return the boards that are complete: every method that a suite names has all its seeds."""
    found = {board.task: board for board in build_boards(load([str(HERE)]).records)}
    whole = []
    for _, board in sorted(found.items()):
        seeds = {len(row.seed_scores) for row in board.all_rows}
        names = {row.method for row in board.rows}
        if seeds == {5} and len(names) == max(len(each.rows) for each in found.values()):
            whole.append(board)
    return whole


def write() -> str:
    """Return the page."""
    shown = boards()
    tasks = {board.task for board in shown}
    records = [each for each in load([str(HERE)]).records if each.trial.task in tasks]
    sizes = sorted({row.first.trial.adapter_parameters for board in shown for row in board.rows})
    parts = [
        INTRO.format(
            count=COUNTS[len(shown)],
            trials=len(records),
            searched=sum(each.trial.purpose == "tune" for each in records),
            minutes=sum(each.cost.get("train_seconds") or 0.0 for each in records) / 60,
            cards=" and ".join(sorted({str(each.environment["hardware"]) for each in records})),
            parameters=" or ".join(f"{each:,}" for each in sizes),
        ),
        "## Scores\n",
        "Mean of five seeds, and the 95 % interval for new items of the same kind. `full` and `frozen` stand outside the "
        "budget:\nall weights train, or the task's head alone.\n",
        *scores(shown),
        "## What is told apart\n",
        *told_apart(shown),
        "## What papers say\n",
        "The difference between two methods, its 95 % interval for new items, and the difference that the paper prints where it\n"
        "has this task, on another base. *yes*: the board tells the two apart, corrected for all its pairs.\n",
        *(line for each in STATEMENTS for line in statement(each, shown)),
        "## What it cost\n",
        *costs(shown),
    ]
    return "\n".join(parts).rstrip() + "\n"


def scores(shown: Sequence[Board]) -> Iterator[str]:
    """Yield the table of scores."""
    yield "| | " + " | ".join(f"{board.task} ({title(board)})" for board in shown) + " |"
    yield "|---" * (len(shown) + 1) + "|"
    for name in [*sorted({row.method for board in shown for row in board.rows}), *BESIDE]:
        cells = [cell(board, name) for board in shown]
        yield f"| {name} | " + " | ".join(cells) + " |"
    yield ""


def told_apart(shown: Sequence[Board]) -> Iterator[str]:
    """Yield what each board separates, and how large a difference it would have seen."""
    for board in shown:
        pairs = list(board.analysis.differences.values()) if board.analysis else []
        apart = [each if better(board, each) else each.reversed() for each in pairs if each.is_separated]
        said = "; ".join(f"{each.first} over {each.second} by {text(each)}" for each in apart)
        seen = board.analysis.detectable if board.analysis else None
        yield (
            f"* **{board.task}**: {len(apart)} of {len(pairs)} pairs{': ' + said if said else ''}. A true difference of "
            f"about {seen:.2g} would have been seen (80 % power)."
        )
    yield ""


def statement(said: Statement, shown: Sequence[Board]) -> Iterator[str]:
    """Yield a paper's statement, and what each board has to say of it."""
    yield f"**{said.words}.**\n"
    yield "| task | difference | 95 %, new items | the paper's | told apart |"
    yield "|---|---|---|---|---|"
    for board in shown:
        found = board.difference(row_of(board, said.method), row_of(board, said.than))
        if found is None:
            continue
        sign = 1 if board.higher_is_better else -1
        yield (
            f"| {board.task} | {sign * found.difference:+.3f} | {interval(found.interval, sign)} | "
            f"{published(said, board)} | {'yes' if found.is_separated else 'no'} |"
        )
    yield ""


def published(said: Statement, board: Board) -> str:
    """Return the difference that the paper prints on a board's task, with its base."""
    if not said.suite:
        return ""
    values = {}
    for each in read_suite(SUITES / f"{said.suite}.toml").published.get(board.task, ()):
        if each["metric"] == board.main_metric:
            values[each["method"].partition(":")[0]] = (each["value"], each["model"])
    if said.method not in values or said.than not in values:
        return ""
    (ours, model), (theirs, _) = values[said.method], values[said.than]
    return f"{ours - theirs:+.3f} ({model.rpartition('/')[2]})"


def costs(shown: Sequence[Board]) -> Iterator[str]:
    """Yield the time of a step and memory of a trial alone, of the boards on which nothing else used the card."""
    alone = [board for board in shown if board.task == "glue/stsb"]
    yield (
        "Of a trial alone on STS-B. The other boards' sweeps shared the card with each other, so what their records say of "
        "step times\nis not a method's own, and is not to be read.\n"
    )
    yield "| | step, ms | relative to LoRA | peak memory, MiB |"
    yield "|---|---|---|---|"
    for board in alone:
        one = value(row_of(board, "lora"), "step_seconds_solo")
        for row in board.all_rows:
            step, memory = value(row, "step_seconds_solo"), value(row, "peak_memory_bytes")
            yield f"| {row.method} | {1e3 * step:.2f} | {step / one:.2f} | {memory / 2**20:,.0f} |"
    yield ""


def row_of(board: Board, method: str) -> Row:
    """Return a method's row; a board has one of each."""
    found = [row for row in board.all_rows if row.method == method]
    if len(found) != 1:
        raise SystemExit(f"{board.task}: {len(found)} rows of {method}")
    return found[0]


def title(board: Board) -> str:
    """Return what a board's score is."""
    return str(board.metric_details[board.main_metric]["title"])


def cell(board: Board, method: str) -> str:
    """Return a score with its interval; nothing where the method was not run."""
    if all(row.method != method for row in board.all_rows):
        return "not run"
    row = row_of(board, method)
    return f"{row.score.value:.3f} ({interval(row.interval)})"


def interval(found: Interval | None, sign: int = 1) -> str:
    """Return an interval in words."""
    if found is None:
        return ""
    low, high = sorted((sign * found.low, sign * found.high))
    return f"{low:.3f} to {high:.3f}"


def better(board: Board, found: Difference) -> bool:
    """Return whether the first of two methods is the better one."""
    return (found.difference > 0) is board.higher_is_better


def text(found: Difference) -> str:
    """Return a difference's size with its interval."""
    return f"{abs(found.difference):.3f} ({interval(found.interval, 1 if found.difference > 0 else -1)})"


def value(row: Row, name: str) -> float:
    """Return a cost of a row."""
    found = row.costs[name].value
    return float("nan") if found is None else found


def main() -> int:
    """Write the page, or check it."""
    page = write()
    if "--check" in sys.argv[1:]:
        return int(PAGE.read_text(encoding="utf-8") != page)
    PAGE.write_text(page, encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
