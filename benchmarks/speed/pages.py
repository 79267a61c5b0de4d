"""How long the leaderboard takes over many records, how much memory, and how large its pages are.

    python benchmarks/speed/pages.py [--records 9 60 2000 20000] [--keep FOLDER]

Nothing is trained: the records are made up, of the size of a short run's, over many tasks, two base models and three budgets;
``--wide`` puts them all on one board, as variants of its methods. Each site is built twice by the command, the second time from
the index beside the records. Seconds are CPU seconds of that process, which another program's load changes little.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np

from harness import Record, Trial
from harness.contract.record import State

METHODS = (
    "lora",
    "dora",
    "mora",
    "pissa",
    "milora",
    "melora",
    "relora",
    "remora",
    "vera",
    "oft",
    "rslora",
    "loraplus",
    "adalora",
)
REFERENCES = ("full", "frozen")
TASKS = tuple(
    f"{family}/{each}"
    for family in ("glue", "qa", "law", "med", "code")
    for each in ("one", "two", "three", "four", "five")
)
MODELS = ("models/llama-58m", "models/llama-250m")
BUDGETS = {"lora:r=8": 98_304, "lora:r=16": 196_608, "0.5%": 290_000}
ITEMS = (64, 256, 1000, 2000)  # of a task's test split
STEPS = 500
DETAILS = {
    "accuracy": {"title": "Accuracy", "unit": "fraction", "higher_is_better": True, "help": "Share of right answers."}
}
ENVIRONMENT = {
    "hardware": "made up",
    "search": {"rates": 5, "seeds": 1},
    "versions": {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.17.0"},
}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--records", type=int, nargs="+", default=[9, 60, 2_000, 20_000])
    parser.add_argument("--wide", action="store_true", help="all of them on one board")
    parser.add_argument("--keep", type=Path, help="folder in which records and sites stay, to be looked at")
    arguments = parser.parse_args()
    print(
        "| records | pages | seconds, first | again | memory, MiB | largest page, kB | site, MB |\n|---|---|---|---|---|---|---|"
    )
    for count in arguments.records:
        with tempfile.TemporaryDirectory() as folder:
            place = (arguments.keep or Path(folder)) / f"{'wide-' if arguments.wide else ''}{count}"
            results, site = place / "results", place / "site"
            if not results.exists():
                results.mkdir(parents=True)
                for record in islice(wide(count) if arguments.wide else many(count), count):
                    (results / f"{record.trial_id}.json").write_text(record.dumps())
            measured = [build(results, site) for _ in range(2)]
            pages = [path.stat().st_size for path in site.rglob("*.html")]
            size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
            print(
                f"| {count:,} | {len(pages)} | {measured[0][0]:.1f} | {measured[1][0]:.1f} | {max(each[1] for each in measured):.0f} "
                f"| {max(pages) / 1e3:.0f} | {size / 1e6:.1f} |",
                flush=True,
            )


def build(results: Path, site: Path) -> tuple[float, float]:
    """Return the CPU seconds and the memory in MiB of the command."""
    command = [
        sys.executable,
        "-c",
        "from harness.cli import main; main()",
        "leaderboard",
        str(results),
        "-o",
        str(site),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said = process.stderr.read() if process.stderr else ""
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(said)
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def many(count: int) -> Iterator[Record]:
    """Yield records of as many boards as it takes: a few methods without a search, or many with one."""
    is_small = count < 50
    methods = METHODS[: 3 if is_small else 6 if count < 1000 else len(METHODS)]
    for place, (budget, model, task) in enumerate(product(BUDGETS, MODELS, TASKS)):
        draw, items = np.random.default_rng(place), ITEMS[(TASKS.index(task) + 1) % len(ITEMS)]
        difficulty = np.random.default_rng(TASKS.index(task)).normal(0, 0.8, items)  # the task's, at every budget
        for number, method in enumerate(methods):
            ability, about = draw.normal(0.3, 0.12), {"task": task, "model": model, "budget": budget, "method": method}
            taste = draw.normal(0, 0.5, len(difficulty))
            for rate in () if is_small else (1e-4, 3e-4, 1e-3, 3e-3, 1e-2):
                loss = 0.1 * abs(np.log10(rate / 1e-3))
                yield record(
                    about, 1_000_003, draw, ability - loss + difficulty[:64] + taste[:64], rate, purpose="tune"
                )
            for seed in range(3 if is_small else 5):
                has_failed = (place + number + seed) % 97 == 96
                yield record(
                    about, seed, draw, ability + draw.normal(0, 0.05) + difficulty + taste, 1e-3, has_failed=has_failed
                )
        for method, seed in product(() if is_small or budget != "lora:r=8" else REFERENCES, range(5)):
            about = {"task": task, "model": model, "budget": "", "budget_parameters": None, "method": method}
            about["adapter_parameters"] = 58_000_000 * (method == "full")
            yield record(about, seed, draw, 0.5 + draw.normal(0, 0.05) + difficulty, 1e-3)


def wide(count: int) -> Iterator[Record]:
    """Yield records of one board: ten seeds each of ever more variants of the methods."""
    draw = np.random.default_rng(0)
    difficulty = draw.normal(0, 0.8, 256)
    for variant, method in product(range(count), METHODS):
        about = {
            "task": TASKS[0],
            "model": MODELS[0],
            "budget": "lora:r=8",
            "method": method,
            "config": {"alpha": 1 + variant},
        }
        ability, taste = draw.normal(0.3, 0.3), draw.normal(0, 0.3, len(difficulty))
        for seed in range(10):
            yield record(about, seed, draw, ability + draw.normal(0, 0.05) + difficulty + taste, 1e-3)


def record(
    about: dict[str, Any], seed: int, draw: np.random.Generator, answers: np.ndarray, rate: float, purpose: str = "report",
    has_failed: bool = False,
) -> Record:  # fmt: skip
    """Return a made-up record with a curve of a hundred points and a score for each item, right with probability Phi(answer)."""
    items = (answers + draw.normal(0, 1, len(answers)) > 0).astype(float)
    cost = 0.01 + 0.002 * (*METHODS, *REFERENCES).index(about["method"])
    size = BUDGETS.get(about["budget"])
    trial = Trial(
        **{"config": {"r": 8}, "budget_parameters": size, "adapter_parameters": size, **about},
        scale="small", recipe={"steps": STEPS, "batch_size": 32}, model_revision="sha256:77aa",
        learning_rate=rate, seed=seed, precision="bfloat16", purpose=purpose, data="made-up",
        plugins={"method": "made-up==1", "task": "made-up==1"},
    )  # fmt: skip
    last = items.mean()
    history = [
        {"step": step, "metrics": {"train/loss": float(2 * np.exp(-step / 150) + 1 - last + draw.normal(0, 0.02))}}
        for step in range(5, STEPS + 1, 5)
    ]
    for step in (100, 200, 300, 400):
        history[step // 5 - 1]["metrics"]["accuracy"] = float(last * (1 - np.exp(-step / 120)))
    return Record(
        trial=trial,
        state=State.DIVERGED if has_failed else State.COMPLETE,
        metrics={} if has_failed else {"accuracy": float(last)},
        history=history,
        items={} if has_failed else {"accuracy": items.tolist()},
        main_metric="accuracy",
        higher_is_better=True,
        metric_details=DETAILS,
        counts={
            "adapter_parameters": size,
            "task_parameters": 0,
            "base_parameters": 58_000_000,
            "budget_deviation_fraction": 0.0,
        },
        cost={
            "train_seconds": STEPS * cost,
            "step_seconds_solo": cost,
            "peak_memory_bytes": 2**30 * (1 + cost),
            "pack_lanes": 4,
        },
        environment=ENVIRONMENT,
        error={"type": "TrialDivergedError", "message": "the training loss became nan", "traceback": "", "step": STEPS}
        if has_failed
        else None,
        started_at="2026-01-01T00:00:00+00:00",
        finished_at="2026-01-01T00:01:00+00:00",
    )


if __name__ == "__main__":
    main()
