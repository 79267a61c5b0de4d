"""How often boards are wrong, find what is there, and cover the truth: the acceptance table of ``docs/fairness.md``.

    python benchmarks/simulation/run.py --boards 400 [--only power] [--matching "^ 2 methods"] [--seed 1]

One line per cell: the share of boards with any false separation (what a reader infers from ranks included, since these
follow from the pairs), the share of true pairs that are found, and how often each named interval holds the truth.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from harness.contract.looks import Looks
from harness_leaderboard.statistics import Stages, analyse
from harness_leaderboard.statistics.decision import Decision, decide
from harness_leaderboard.statistics.scores import units

sys.path.insert(0, str(Path(__file__).parent))
from worlds import Array, Drawn, World, draw  # a script's neighbour

LEVEL = 0.05
POINTS = 0.05  # that a run with looks wants to tell apart
FIRST = 3  # seeds at the first look


def cells() -> Iterator[tuple[str, World]]:
    """Yield the table's cells, by kind."""
    yield "power", World(methods=13, seeds=3, items=256, gap=0.2)
    yield "power", World(methods=5, seeds=3, items=256, gap=0.1)
    yield "power", World(methods=13, seeds=5, items=256, gap=0.1)
    for methods, seeds, items, deviation, is_unequal in product(
        (2, 5, 9, 13), (3, 5, 10), (16, 256, 1000), (0.5, 1.0), (False, True)
    ):
        kind = "unequal" if is_unequal else "equal"
        yield kind, World(methods=methods, seeds=seeds, items=items, item_deviation=deviation, is_unequal=is_unequal)
    for methods, seeds, items in product((2, 5, 13), (3, 10), (256, 1000)):
        yield "clustered", World(methods=methods, seeds=seeds, items=items, document=8)
    for metric, methods, seeds in product(("perplexity", "matthews", "f1"), (2, 5), (3, 10)):
        yield "corpus", World(methods=methods, seeds=seeds, items=256, metric=metric)
    for methods, seeds in product((5, 8), (3, 10, 20)):
        yield "searched", World(methods=methods, seeds=seeds, items=256, is_searched=True)
    for methods, items, gap, is_unequal in product((2, 5, 13), (256, 1000), (0.0, 0.1), (False, True)):
        world = World(methods=methods, seeds=10, items=items, gap=gap, is_unequal=is_unequal)
        yield "sequential", world
    for methods, seeds, items in product((5,), (3, 5, 10), (16, 64, 256)):
        yield "coverage", World(methods=methods, seeds=seeds, items=items)
    for search_seeds, halves in ((1, False), (4, False), (4, True), (8, False), (8, True)):
        for methods, seeds in product((5, 8), (3, 10)):
            yield (
                "halving",
                World(
                    methods=methods, seeds=seeds, items=256, is_searched=True, search_seeds=search_seeds, halves=halves
                ),
            )
    yield "power", World(methods=2, seeds=3, items=256, gap=0.1)
    yield "power", World(methods=2, seeds=3, items=256, gap=0.2)
    yield "power", World(methods=2, seeds=5, items=256, gap=0.1)
    yield "power", World(methods=9, seeds=3, items=256, gap=0.1)
    for methods, seeds, better, is_unequal in product((5, 9, 13), (3, 5), (1, None), (False, True)):
        world = World(methods=methods, seeds=seeds, items=256, gap=0.2, better=better, is_unequal=is_unequal)
        yield "partial", world
    for methods, seeds, better in product((2, 5, 9, 13), (3, 5, 10), (1, None)):
        yield "named", World(methods=methods, seeds=seeds, items=256, better=better, middle=0.5)


def separations(world: World, boards: int, generator: np.random.Generator) -> str:
    """Return how often boards separate equals, and the share of true pairs that they find."""
    wrong, found = 0, []
    for _ in range(boards):
        drawn = draw(world, generator)
        decision = decide(drawn.scores, units(drawn.scores), LEVEL)
        said, truth = _said_and_true(world, drawn, decision)
        wrong += bool(((said != 0) & (said != truth)).any())
        if world.gap:
            found.append((said == truth)[truth != 0].mean())
    return f"false {wrong / boards:6.1%}" + (f"  found {np.mean(found):6.1%}" if found else "")


def _said_and_true(world: World, drawn: Drawn, decision: Decision) -> tuple[Array, Array]:
    """Return what a board says of each pair (1: the first has the higher score, 0: not told apart), and the truth."""
    pairs = decision.pairs
    assert pairs is not None
    sign = 1 if drawn.scores.higher_is_better else -1
    truth = sign * (drawn.better[pairs.first].astype(int) - drawn.better[pairs.second]) * (world.gap > 0)
    return np.sign(pairs.differences) * decision.separated, truth


def sequential(world: World, boards: int, generator: np.random.Generator) -> str:
    """Return how often boards whose seeds are added until methods are told apart are wrong, at any of their looks.

    Every method gets a look's seeds if it is part of a pair that is not told apart and may still differ by ``POINTS``.
    """
    looks = Looks.plan(100 * POINTS, range(FIRST), world.seeds)
    last, wrong, ever, found, spent = len(looks.counts), 0, 0, [], []
    for _ in range(boards):
        drawn = draw(world, generator)
        reached, mistaken = np.ones(world.methods, dtype=int), []
        while True:
            stages = Stages(
                seeds=tuple(looks.seeds_at(look + 1) for look in range(last)),
                shares=looks.shares,
                reached=tuple(reached.tolist()),
            )
            decision = decide(replace(drawn.scores, stages=stages), units(drawn.scores), LEVEL)
            said, truth = _said_and_true(world, drawn, decision)
            mistaken.append(bool(((said != 0) & (said != truth)).any()))
            assert decision.pairs is not None
            reach = np.abs(decision.pairs.differences) + decision.deciding.distance(LEVEL * decision.shares)
            undecided = ~decision.separated & (reach >= POINTS)
            methods = np.unique(np.concatenate([decision.pairs.first[undecided], decision.pairs.second[undecided]]))
            more = methods[reached[methods] < last]
            if not len(more):
                break
            reached[more] += 1
        wrong, ever = wrong + mistaken[-1], ever + any(mistaken)
        spent.append(np.mean([looks.counts[each - 1] for each in reached]))
        if world.gap:
            found.append((said == truth)[truth != 0].mean())
    power = f"  found {np.mean(found):6.1%}" if found else ""
    return f"false {wrong / boards:6.1%}  at any look {ever / boards:6.1%}{power}  seeds {np.mean(spent):4.1f}"


def halving(world: World, boards: int, generator: np.random.Generator) -> str:
    """Return how often boards separate equals, and how good and how dear the searches for their rates were."""
    wrong, lost, spent = 0, [], []
    for _ in range(boards):
        drawn = draw(world, generator)
        decision = decide(drawn.scores, units(drawn.scores), LEVEL)
        wrong += bool(decision.separated.any())
        lost.append(drawn.lost.mean())
        spent.append(np.mean([(~np.isnan(each.scores)).sum() for each in drawn.scores.searches]))
    return f"false {wrong / boards:6.1%}  lost {100 * np.mean(lost):5.2f} points  trials {np.mean(spent):5.1f}"


def coverage(world: World, boards: int, generator: np.random.Generator) -> str:
    """Return how often the named intervals of methods and of differences hold the truth."""
    inside: dict[str, list[bool]] = {"these": [], "new": [], "difference, these": [], "difference, new": []}
    for _ in range(boards):
        drawn = draw(world, generator)
        found = analyse(drawn.scores)
        new = np.broadcast_to(drawn.new_items, drawn.these_items.shape)
        for place, each in enumerate(found.estimates):
            assert each.these_items is not None
            assert each.new_items is not None
            inside["these"].append(drawn.these_items[place] in each.these_items)
            inside["new"].append(new[place] in each.new_items)
        for (first, second), pair in found.differences.items():
            assert pair.new_items is not None
            inside["difference, these"].append(drawn.these_items[first] - drawn.these_items[second] in pair.these_items)
            inside["difference, new"].append(new[first] - new[second] in pair.new_items)
    return "  ".join(f"{name} {np.mean(values):6.1%}" for name, values in inside.items())


def described(world: World) -> str:
    """Return a cell's name, as it is printed and matched."""
    return (
        f"{world.methods:2} methods {world.seeds:2} seeds {world.items:4} items  deviation {world.item_deviation}"
        f"{'' if world.metric == 'mean' else ' ' + world.metric}"
        f"{' one noisier' if world.is_unequal else ''}{f' gap {world.gap}' if world.gap else ''}"
        f"{f' searched on {world.search_seeds}' if world.is_searched else ''}{' halving' if world.halves else ''}"
        f"{f' of {world.better}' if world.better else ''}"
    )


def named(world: World, boards: int, generator: np.random.Generator) -> str:
    """Return the difference that boards name as the one they mostly see, and how often they find one of that size."""
    seen = [analyse(draw(world, generator).scores).detectable for _ in range(max(boards // 5, 1))]
    difference = float(np.median([each for each in seen if each is not None]))
    return f"names {difference:.3f}  {separations(replace(world, gap=difference), boards, generator)}"


def main() -> None:
    """Print the table, a line as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boards", type=int, default=400)
    parser.add_argument("--only", default="", help="kinds, separated by commas")
    parser.add_argument("--matching", default="", help="part of the names of cells, a regular expression")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for number, (kind, world) in enumerate(cells()):
        what = described(world)
        if (arguments.only and kind not in arguments.only.split(",")) or not re.search(arguments.matching, what):
            continue
        generator = np.random.default_rng([arguments.seed, number])
        start = time.process_time()
        measure = {"coverage": coverage, "sequential": sequential, "halving": halving, "named": named}.get(
            kind, separations
        )
        result = measure(world, arguments.boards, generator)
        cost = (time.process_time() - start) / arguments.boards * 1e3
        print(f"{kind:9} {what}  {result}  ({arguments.boards} boards, {cost:.0f} ms each)", flush=True)


if __name__ == "__main__":
    main()
