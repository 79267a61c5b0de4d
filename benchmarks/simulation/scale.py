"""How a sweep of 100,000 trials on 1,000 workers is handed out: the scheduler's own pieces, with a clock that is made up.

    python benchmarks/simulation/scale.py [--trials 100000] [--workers 1000] [--plot FILE]

Everything that takes time is made up: loading a base model, training, slow workers, workers that are lost in the
middle and come back. What decides who trains what is ``running.pieces``, as it is. Printed: seconds of this process per
handed-out trial (which may not grow with the sweep), idle time of the workers, models loaded, trials begun twice.
"""

from __future__ import annotations

import argparse
import heapq
import random
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from harness.contract.method import Method
from harness.contract.trial import Trial
from harness.running.pieces import Pieces

TASKS, METHODS, RATES = 20, 10, 5
LOAD_SECONDS = 60.0  # of a base model, with its data
TRIAL_SECONDS = 300.0  # on an ordinary worker
SLOW_SHARE, SLOWER = 0.05, 4.0  # stragglers
LOST_EVERY = 40_000.0  # seconds of a worker's life, on average
BACK_SECONDS = 120.0  # until another is in its place


class Simple(Method):
    """A method that packs."""

    name = "simple"
    paper = "https://example.org"


@dataclass
class Outcome:
    """What came of a simulated sweep."""

    trials: int
    workers: int
    plan_seconds: float
    dispatch_seconds: float
    idle_fraction: float
    makespan: float
    loads: int
    lost: int
    finished_twice: int


def make(count: int) -> list[Trial]:
    """Return so many trials of several tasks, methods and rates."""
    cells = TASKS * METHODS * RATES
    return [
        Trial(
            task=f"task{each % TASKS}", scale="small", recipe={"steps": 100}, model=f"model{each % TASKS}",
            model_revision="0", method="simple", config={"r": each // TASKS % METHODS}, layer_settings={}, targets=(),
            budget="lora:r=8", budget_parameters=1, adapter_parameters=1,
            learning_rate=10.0 ** -(1 + each // (TASKS * METHODS) % RATES), seed=each // cells, precision="float32",
            data="0", plugins={},
        )
        for each in range(count)
    ]  # fmt: skip


def simulate(count: int, workers: int, seed: int = 0) -> Outcome:
    """Run a sweep by the made-up clock."""
    chance = random.Random(seed)
    trials = make(count)
    registry: Any = SimpleNamespace(method=lambda name: Simple)
    begin = time.perf_counter()
    pieces = Pieces(registry, workers, 1)
    pieces.add(trials)
    plan_seconds = time.perf_counter() - begin
    slow = [chance.random() < SLOW_SHARE for _ in range(workers)]
    base = [""] * workers
    done: dict[str, int] = {}
    events = [(0.0, number) for number in range(workers)]  # when each is free
    heapq.heapify(events)
    busy, dispatch, loads, lost, last = 0.0, 0.0, 0, 0, 0.0
    life = [chance.expovariate(1 / LOST_EVERY) for _ in range(workers)]
    while pieces:
        now, number = heapq.heappop(events)
        begin = time.perf_counter()
        piece, _ = pieces.next(number)
        dispatch += time.perf_counter() - begin
        at = now
        for place, trial in enumerate(piece):
            if base[number] != trial.model:
                base[number], loads, at = trial.model, loads + 1, at + LOAD_SECONDS
            takes = TRIAL_SECONDS * chance.uniform(0.8, 1.2) * (SLOWER if slow[number] else 1.0)
            if at + takes > life[number]:  # lost in the middle: what it had goes to another
                lost += 1
                pieces.put_back(piece[place:])
                base[number] = ""
                at = max(at, life[number]) + BACK_SECONDS
                life[number] = at + chance.expovariate(1 / LOST_EVERY)
                break
            at += takes
            done[trial.id] = done.get(trial.id, 0) + 1
        last = max(last, at)
        busy += at - now
        heapq.heappush(events, (at, number))
    assert len(done) == count, "every trial is done"
    twice = sum(times - 1 for times in done.values())
    return Outcome(
        count, workers, plan_seconds, dispatch, 1 - busy / (last * workers), last, loads, lost, twice
    )  # fmt: skip


def main() -> None:
    """Print the figures for sweeps of growing size, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--plot", default="")
    options = parser.parse_args()
    found = []
    for part in (16, 4, 1):
        outcome = simulate(options.trials // part, max(1, options.workers // part))
        found.append(outcome)
        each = 1e6 / outcome.trials
        print(
            f"{outcome.trials:7d} trials, {outcome.workers:5d} workers: planned in {outcome.plan_seconds * each:.0f} us and "
            f"handed out in {outcome.dispatch_seconds * each:.0f} us a trial; idle {outcome.idle_fraction:.1%}, "
            f"{outcome.loads} models loaded, {outcome.lost} workers lost, {outcome.finished_twice} trials twice",
            flush=True,
        )
    if options.plot:
        draw(found, options.plot)


def draw(found: list[Outcome], file: str) -> None:
    """Draw cost per trial and idle time over the size of the sweep."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    sizes = [each.trials for each in found]
    for name in ("plan", "dispatch"):
        micros = [1e6 * getattr(each, f"{name}_seconds") / each.trials for each in found]
        left.plot(sizes, micros, marker="o", label=name)
    left.set(xscale="log", xlabel="trials", ylabel="microseconds a trial", ylim=(0, None))
    left.legend()
    right.plot(sizes, [100 * each.idle_fraction for each in found], marker="o")
    right.axhline(5, linestyle=":", color="grey")
    right.set(xscale="log", xlabel="trials (a hundred for each worker)", ylabel="idle, %", ylim=(0, None))
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
