"""Write docs/first-results.md from the records beside this file: every number of it is computed here.

    python benchmarks/results/report.py [--check]

With ``--check`` nothing is written, and the exit code says whether the page is what the records say.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from scipy.stats import t as student
from written import better, cell, interval, row_of, text, title, value

from harness.contract.record import Record
from harness.contract.trial import Trial
from harness.planning.suite import read_suite
from harness_leaderboard.boards.build import build_boards
from harness_leaderboard.boards.model import Board, Row
from harness_leaderboard.load import load

HERE = Path(__file__).parent
AGAIN = HERE.parent / "reproduced"
PAGE = HERE.parents[1] / "docs" / "first-results.md"
SUITES = HERE.parent / "harness_benchmarks" / "suites"
BESIDE = "full", "frozen"
COUNTS = "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"
EARLY = 100  # updates, of which the history keeps every one


@dataclass(frozen=True)
class Base:
    """A base model of these results, and in words what was done with it.

    Attributes:
        model: As records name it.
        title: For a heading.
        words: What it is and how it was trained.
        costs_of: The task on whose board costs are shown; its sweep had the card for itself.
    """

    model: str
    title: str
    words: str
    costs_of: str


BASES = (
    Base(
        "models/SmolLM2-135M-Instruct",
        "A language model: SmolLM2-135M",
        "SmolLM2-135M-Instruct, 135 million parameters, its weights as a published 4-bit file has them. Adapters of LoRA's size at\n"
        "rank 8 ({parameters} parameters) on every linear layer. Memorising 512 pairs of random UUIDs, 150 updates of 64; abstracts of\n"
        "PubMed and financial news, 300 updates of 16 windows of 256 tokens. Lower perplexity is better. Four sets of questions with answers\n"
        "to choose from (BoolQ, both of ARC, OpenBookQA), 600 updates of 16: a base of this size learns the form of an answer and no more.",
        "continual/biomed",
    ),
    Base(
        "models/all-MiniLM-L6-v2",
        "A small encoder: MiniLM-L6",
        "all-MiniLM-L6-v2, 22.7 million parameters. Adapters of {parameters} parameters on queries and values, 1,000 updates of\n"
        "32 texts. `frozen` trains the task's head alone.",
        "glue/stsb",
    ),
)


@dataclass(frozen=True)
class Statement:
    """What a paper says of two methods, and the suites that hold its numbers, if it has numbers on these tasks."""

    method: str
    than: str
    words: str
    tasks: tuple[str, ...] = ()  # that it speaks of; none: all
    suites: tuple[str, ...] = ()


DOMAINS = "continual/biomed", "continual/finance"
STATEMENTS = (
    Statement("mora", "lora", "MoRA memorises more than LoRA of the same size (MoRA, section 3 and figure 3)", ("uuid",)),
    Statement("mora", "lora", "MoRA is better than LoRA in continual pretraining (MoRA, table 1)", DOMAINS),
    Statement("mora", "lora", "MoRA does about as well as LoRA where nothing has to be memorised (MoRA, table 1)", ("glue/",)),
    Statement("pissa", "lora", "PiSSA scores higher than LoRA (PiSSA, tables 1 and 2)", (), ("pissa-table2-roberta-large",)),
    Statement("dora", "lora", "DoRA scores higher than LoRA (DoRA, on commonsense reasoning and others)"),
    Statement("milora", "lora", "MiLoRA scores higher than LoRA (MiLoRA, tables 1 to 3)"),
    Statement("melora", "lora", "MELoRA scores higher than LoRA (MELoRA, table 2)"),
    Statement("relora", "lora", "ReLoRA is made for pretraining; its paper fine-tunes nothing"),
    Statement("remora", "relora", "ReMoRA is better than ReLoRA in pretraining (MoRA, section 4.4)", DOMAINS),
    Statement("remora", "mora", "Merging helps MoRA in pretraining (MoRA, section 4.4)", DOMAINS),
)  # fmt: skip

INTRO = """# First results

<!-- Written by benchmarks/results/report.py from the records beside it; edit that file, not this one. -->

What nine methods do, eight of them at one budget, with a language model on {language} tasks and with an encoder on {encoder} sets of GLUE,
tuned, with five seeds each: {trials:,} trials, {searched:,} of them to search learning rates, trained for {minutes:.0f} minutes in all on
{cards}, in bfloat16. The commands, data and licences are [beside the records](../benchmarks/results/README.md);
`harness leaderboard benchmarks/results` makes the page with every interval, curve and trial. How intervals are made, and when two
methods count as told apart, is in [fairness](fairness.md).

These are small models and short training. Nothing here speaks of large models, of long training, or of larger budgets.
"""


def boards() -> list[Board]:
    """Return the boards that are complete: every method that a suite names has all its seeds."""
    found = build_boards(load([str(HERE)]).records)
    most = max(len(each.rows) for each in found)
    return [
        board
        for board in sorted(found, key=lambda each: each.task)
        if {len(row.seed_scores) for row in board.all_rows} == {5} and len(board.rows) == most
    ]


def write() -> str:
    """Return the page."""
    shown = boards()
    groups = [[board for board in shown if board.all_rows[0].first.trial.model == base.model] for base in BASES]
    whole = {(board.task, board.all_rows[0].first.trial.model) for board in shown}
    records = [each for each in load([str(HERE)]).records if (each.trial.task, each.trial.model) in whole]
    parts = [
        INTRO.format(
            language=COUNTS[len(groups[0])],
            encoder=COUNTS[len(groups[1])],
            trials=len(records),
            searched=sum(each.trial.purpose == "tune" for each in records),
            minutes=sum(each.cost.get("train_seconds") or 0.0 for each in records) / 60,
            cards=" and ".join(sorted({str(each.environment["hardware"]) for each in records})) + " cards",
        )
    ]
    for base, group in zip(BASES, groups, strict=True):
        sizes = sorted({row.first.trial.adapter_parameters for board in group for row in board.rows})
        parts += [
            f"## {base.title}\n",
            base.words.format(parameters=" or ".join(f"{each:,}" for each in sizes)) + "\n",
            "Mean of five seeds, and the 95 % interval for new items of the same kind. `full` and `frozen` stand outside the budget:\n"
            "all weights train, or none does.\n",
            *scores(group),
            "**What is told apart**, at the 5 % level for a board as a whole, on new items of the same kind. In brackets the 95 %\n"
            "interval of the pair alone. *Mostly seen from*: how far two methods as noisy as most must truly be apart for about 4 of 5 such boards,\n"
            "or more, to tell them apart. What is not told apart need not be equal.\n",
            *told_apart(group),
            *guessing(group),
            *(beside(group) if base is BASES[0] else ()),
            *search(group, records),
            *costs(next(board for board in group if board.task == base.costs_of)),
        ]
    parts += [
        "## What papers say\n",
        "The difference between two methods, above zero where the one that is named first is better, and the difference that the paper\n"
        "prints where it has this task, on another base. The 95 % interval is for new items, and of this pair alone; *yes*: the board,\n"
        "which looks at all its pairs, tells the two apart. So an interval may exclude 0 beside a *no*, and *no* is not *equal*.\n",
        *(line for each in STATEMENTS for line in statement(each, shown)),
        "## A board run twice\n",
        *(line for board in build_boards(load([str(AGAIN)]).records) for line in twice(board, shown)),
    ]
    return "\n".join(parts).rstrip() + "\n"


def scores(shown: Sequence[Board]) -> Iterator[str]:
    """Yield the table of scores."""
    yield "| | " + " | ".join(f"{board.task} ({title(board)})" for board in shown) + " |"
    yield "|---" * (len(shown) + 1) + "|"
    for name in [*sorted({row.method for board in shown for row in board.rows}), *BESIDE]:
        cells = [cell(board, name) for board in shown]
        yield f"| {name} | " + " | ".join(cells) + " |"
    yield "| *guessing* | " + " | ".join("" if each.chance is None else f"{each.chance:.3f}" for each in shown) + " |"
    yield ""


def told_apart(shown: Sequence[Board]) -> Iterator[str]:
    """Yield what each board separates, and how large a difference it would have seen."""
    for board in shown:
        pairs = list(board.analysis.differences.values()) if board.analysis else []
        apart = [each if better(board, each) else each.reversed() for each in pairs if each.is_separated]
        said = "; ".join(f"{each.first} over {each.second} by {text(each)}" for each in apart)
        seen = board.analysis.detectable if board.analysis else None
        yield (
            f"* **{board.task}**: {len(apart)} of {len(pairs)} pairs{': ' + said if said else ''}. Mostly seen from {seen:.2g} on."
        )
    yield ""


def guessing(shown: Sequence[Board]) -> Iterator[str]:
    """Yield who is told apart from guessing, and who is not."""
    yield "**Above guessing**, which always gives the commonest answer or one of several at random, at the 5 % level for all methods of a board:\n"
    for board in shown:
        if board.chance is None:
            continue
        may_guess = sorted(row.method for row in board.no_better_than_chance)
        proven = sorted(row.method for row in board.rows if row.method not in may_guess)
        most, rest = ("none", proven) if len(proven) < len(may_guess) else ("all", may_guess)
        yield f"* **{board.task}**: {most}{' but ' + ', '.join(rest) if rest else ''}."
    yield ""


def beside(group: Sequence[Board]) -> Iterator[str]:
    """Yield what training cost the base of its own language, and how fast the loss fell."""
    yield (
        "**Forgetting**: how much the negative log-likelihood of WikiText grew, in nats a token, and the difference from LoRA with its\n"
        "95 % interval over the five seeds (Student's t, paired, not corrected for the number of methods).\n"
    )
    yield "| | " + " | ".join(f"{board.task} | less LoRA's" for board in group) + " |"
    yield "|---" * (2 * len(group) + 1) + "|"
    for name in [*sorted({row.method for board in group for row in board.rows}), "full"]:
        cells = []
        for board in group:
            ours, theirs = by_seed(row_of(board, name)), by_seed(row_of(board, "lora"))
            cells.append(f"{fmean(ours.values()):.3f}")
            cells.append("" if name == "lora" else paired([ours[seed] - theirs[seed] for seed in sorted(ours)]))
        yield f"| {name} | " + " | ".join(cells) + " |"
    yield f"\n**Speed of learning**: mean training loss of the first {EARLY} updates, each method at its searched rate.\n"
    yield "| | " + " | ".join(board.task for board in group) + " |"
    yield "|---" * (len(group) + 1) + "|"
    for name in [*sorted({row.method for board in group for row in board.rows}), "full"]:
        yield f"| {name} | " + " | ".join(f"{early_loss(row_of(board, name)):.3f}" for board in group) + " |"
    yield ""


def search(group: Sequence[Board], records: Sequence[Record]) -> Iterator[str]:
    """Yield every rate that was tried, with its score, the chosen one in bold."""
    yield "**The search**: rates tried, each with the validation score of one seed; in bold the one that was taken.\n"
    yield "| | " + " | ".join(board.task for board in group) + " |"
    yield "|---" * (len(group) + 1) + "|"
    for name in sorted({row.method for board in group for row in board.rows}):
        cells = []
        for board in group:
            chosen = row_of(board, name).first.trial
            tried = sorted(
                (each.trial.learning_rate, each.metrics.get(each.main_metric))
                for each in records
                if each.trial.purpose == "tune"
                and (each.trial.task, each.trial.model, each.trial.method) == (board.task, chosen.model, name)
            )
            texts = [f"{rate:.2g}: " + ("diverged" if score is None else f"{score:.3f}") for rate, score in tried]
            cells.append(
                ", ".join(
                    f"**{text}**" if rate == chosen.learning_rate else text
                    for (rate, _), text in zip(tried, texts, strict=True)
                )
            )
        yield f"| {name} | " + " | ".join(cells) + " |"
    yield ""


def by_seed(row: Row) -> dict[int, float]:
    """Return how much of the base's own language each seed's trial forgot."""
    return {each.trial.seed: float(each.metrics["forgetting_excess"] or 0.0) for each in row.records}


def paired(differences: Sequence[float]) -> str:
    """Return a mean difference with its interval."""
    half = float(student.ppf(0.975, len(differences) - 1)) * stdev(differences) / len(differences) ** 0.5
    middle = fmean(differences)
    return f"{middle:+.3f} ({middle - half:+.3f} to {middle + half:+.3f})"


def early_loss(row: Row) -> float:
    """Return the mean over seeds of the mean loss of the first updates."""
    curves = [
        [
            point["metrics"]["train/loss"]
            for point in each.history
            if point["step"] <= EARLY and "train/loss" in point["metrics"]
        ]
        for each in row.records
    ]
    return fmean(fmean(curve) for curve in curves)


def statement(said: Statement, shown: Sequence[Board]) -> Iterator[str]:
    """Yield a paper's statement, and what each board that it speaks of has to say of it."""
    yield f"**{said.words}.**\n"
    yield f"| task | {said.method} over {said.than} | 95 %, new items | the paper's | told apart |"
    yield "|---|---|---|---|---|"
    for board in shown:
        if said.tasks and not board.task.startswith(said.tasks):
            continue
        found = board.difference(row_of(board, said.method), row_of(board, said.than))
        if found is None:
            continue
        sign = 1 if board.higher_is_better else -1
        yield (
            f"| {board.task} | {sign * found.difference:+.3f} | {interval(found.interval, sign)} | "
            f"{published(said, board)} | {'yes' if found.is_separated else 'no'} |"
        )
    yield ""


def twice(again: Board, shown: Sequence[Board]) -> Iterator[str]:
    """Yield what the same command gave on another machine."""
    (once,) = [
        board
        for board in shown
        if (board.task, board.all_rows[0].first.trial.model) == (again.task, again.all_rows[0].first.trial.model)
    ]
    machines = [
        " and ".join(sorted({each.environment["hardware"] for row in b.all_rows for each in row.records}))
        for b in (once, again)
    ]
    yield (
        f"**{again.task}** on one {machines[0]}, and by the same command on one {machines[1]}. The interval is the first run's, for the same\n"
        "items and other seeds, at the rate that was taken.\n"
    )
    yield "| | first | rate | again | rate | same seed, largest difference | in the first's interval |"
    yield "|---|---|---|---|---|---|---|"
    for name in [row.method for row in again.all_rows]:
        first, second = row_of(once, name), row_of(again, name)
        pairs = [(first.seed_scores[seed], score) for seed, score in second.seed_scores.items()]
        largest = max(abs(a - b) for a, b in pairs)
        found = first.estimate.these_items if first.estimate else None
        inside = "" if found is None else "yes" if found.low <= second.score.value <= found.high else "no"
        rates = [f"{row.first.trial.learning_rate:.2g}" for row in (first, second)]
        yield (
            f"| {name} | {first.score.value:.4f} ({interval(found)}) | {rates[0]} | {second.score.value:.4f} | {rates[1]} | "
            f"{largest:.4f} | {inside} |"
        )
    yield ""
    for name in [row.method for row in again.all_rows]:
        rows = row_of(once, name), row_of(again, name)
        rates = [row.first.trial.learning_rate for row in rows]
        if rates[0] != rates[1]:
            found = [[searched(root, rows[0].first.trial, rate) for root in (HERE, AGAIN)] for rate in rates]
            said = "; ".join(f"{rate:.2g}: {a:.4f}, then {b:.4f}" for rate, (a, b) in zip(rates, found, strict=True))
            yield f"`{name}` took another rate the second time. What the search saw of the two on validation: {said}.\n"


def searched(root: Path, trial: Trial, rate: float) -> float:
    """Return what the search of a trial's method saw of a rate."""
    (found,) = [
        each.score
        for each in load([str(root)]).records
        if each.trial.purpose == "tune"
        and (each.trial.task, each.trial.model, each.trial.method) == (trial.task, trial.model, trial.method)
        and each.trial.learning_rate == rate
    ]
    return float("nan") if found is None else found


def published(said: Statement, board: Board) -> str:
    """Return the difference that the paper prints on a board's task, with its base."""
    values = {}
    for name in said.suites:
        for each in read_suite(SUITES / f"{name}.toml").published.get(board.task, ()):
            if each["metric"] == board.main_metric:
                values[each["method"].partition(":")[0]] = (each["value"], each["model"])
    if said.method not in values or said.than not in values:
        return ""
    (ours, model), (theirs, _) = values[said.method], values[said.than]
    return f"{ours - theirs:+.3f} ({model.rpartition('/')[2]})"


def costs(board: Board) -> Iterator[str]:
    """Yield the time of a step and memory of a trial alone."""
    yield f"**What it costs**, a trial alone on {board.task}:\n"
    yield "| | step, ms | relative to LoRA | peak memory, MiB |"
    yield "|---|---|---|---|"
    one = value(row_of(board, "lora"), "step_seconds_solo")
    for row in board.all_rows:
        step, memory = value(row, "step_seconds_solo"), value(row, "peak_memory_bytes")
        if step == step:  # frozen trains nothing
            yield f"| {row.method} | {1e3 * step:.2f} | {step / one:.2f} | {memory / 2**20:,.0f} |"
    yield ""


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
