"""How long a large sweep takes before and after its training: planned, grouped into jobs, listed, records read.

    python benchmarks/speed/planning.py [--trials 1000 10000 100000] [--output FILE]

Nothing is trained: the records are made up, of the size of a short run's. Seconds are CPU seconds of this process, which
another program's load changes little.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from harness import Record, Trial
from harness.cli.plan import plan_table
from harness.contract.record import State
from harness.planning.registry import Registry, build_registry
from harness.planning.suite import Suite, build_suite
from harness.results.frame import render_list
from harness.results.store import Store
from harness.running.pieces import Pieces
from harness.running.sweep import plan_sweep

RATES = 10
R = TypeVar("R")


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--output", type=Path, help="also write the seconds as JSON")
    arguments = parser.parse_args()
    registry = build_registry()
    plan_sweep(suite(100), registry, None, "float32", Store("."))  # loads what is loaded once
    found = {}
    for count in arguments.trials:
        with tempfile.TemporaryDirectory() as folder:
            found[count] = measure(count, registry, folder)
    parts = list(next(iter(found.values())))
    print("| trials | " + " | ".join(parts) + " |\n|---|" + "---|" * len(parts))
    for count, seconds in found.items():
        print(f"| {count:,} | " + " | ".join(f"{seconds[part]:.2f}" for part in parts) + " |")
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=1))


def suite(count: int) -> Suite:
    """Return a sweep of at least so many trials, over all methods, ten learning rates and as many seeds as it takes."""
    methods = sum(method.traits.in_all for method in build_registry().methods.values())
    rates = [float(f"1e-{place + 1}") for place in range(RATES)]
    seeds = list(range(-(-count // (RATES * methods))))
    return build_suite({"tasks": ["uuid"], "methods": ["all"], "learning_rates": rates, "seeds": seeds})


def measure(count: int, registry: Registry, folder: str) -> dict[str, float]:
    """Return CPU seconds by what was done."""
    seconds: dict[str, float] = {}

    def timed(part: str, work: Callable[[], R]) -> R:
        begin = time.process_time()
        result = work()
        seconds[part] = time.process_time() - begin
        return result

    store, asked = Store(folder), suite(count)
    cells, trials, states = timed("plan", lambda: plan_sweep(asked, registry, None, "float32", store))
    timed("group", lambda: hand_out(Pieces(registry, 2, 0), trials))
    timed("list", lambda: plan_table(cells, trials, states, registry))
    seconds["together"] = sum(seconds.values())
    for trial in trials:
        (Path(folder) / f"{trial.id}.json").write_text(made_up(trial).dumps())
    timed("list records", lambda: render_list(store.records()))
    return seconds


def hand_out(pieces: Pieces, trials: Sequence[Trial]) -> None:
    """Hand out all trials to two workers in turn."""
    pieces.add(trials)
    while pieces:
        for worker in (0, 1):
            pieces.next(worker)


def made_up(trial: Trial) -> Record:
    """Return a record with a curve of a hundred points and the scores of a hundred items."""
    history = [
        {"step": step, "metrics": {"train/loss": 1 / step, "train/learning_rate": 1e-3}} for step in range(1, 101)
    ]
    return Record(
        trial=trial,
        state=State.COMPLETE,
        metrics={"character_accuracy": 0.5},
        history=history,
        items={"character_accuracy": [0.5] * 100},
        main_metric="character_accuracy",
        higher_is_better=True,
        counts={"adapter_parameters": trial.adapter_parameters},
        cost={"train_seconds": 1.0},
        environment={"versions": {"torch": "2"}, "hardware": "none"},
        started_at="2026-01-01T00:00:00+00:00",
        finished_at="2026-01-01T00:01:00+00:00",
    )


if __name__ == "__main__":
    main()
