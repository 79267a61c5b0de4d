"""How much power there is to have: tests that know what no board knows, beside the one that boards use.

    python benchmarks/simulation/oracle.py --boards 1500

Five methods, three seeds, 256 items, half of the methods better by 10 points. The first test knows the variance of every
difference. The second knows the common variance, how much noisier the noisy one is and how likely there is one, but not
which method it is: it weighs that by the seeds. Both correct for all pairs as boards do. The last two numbers of a line
are how often the second is wrong where one method or two are better by 20 points and another one is noisier.
"""

from __future__ import annotations

import argparse
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy.special import ndtr

from harness_leaderboard.statistics.multiplicity import corrected

sys.path.insert(0, str(Path(__file__).parent))
from worlds import NOISIER, SEED, Array, World, draw  # a script's neighbour

METHODS, SEEDS, ITEMS, GAP, LEVEL = 5, 3, 256, 0.1, 0.05
FAR = 0.2  # gap of methods that are out of the way
FIRST, SECOND = map(np.array, zip(*combinations(range(METHODS), 2), strict=True))


def totals(boards: int, seed: int, gap: float = 0.0, is_unequal: bool = False, better: int | None = None) -> Array:
    """Return the scores of some boards, (boards, methods, seeds)."""
    world = World(methods=METHODS, seeds=SEEDS, items=ITEMS, gap=gap, is_unequal=is_unequal, better=better)
    generator = np.random.default_rng(seed)
    return np.array([draw(world, generator).scores.totals for _ in range(boards)])


def differences(scores: Array) -> Array:
    """Return the differences of all pairs, (boards, pairs)."""
    means = scores.mean(2)
    return np.asarray(means[:, FIRST] - means[:, SECOND])


def found(p_values: Array, scores: Array, truth: Array) -> tuple[float, float]:
    """Return the share of boards with a false separation, and of true pairs that are found."""
    separated = np.array([corrected(each, FIRST, SECOND) for each in p_values]) < LEVEL
    said = np.sign(differences(scores)) * separated
    wrong = ((said != 0) & (said != truth)).any(1).mean()
    return float(wrong), float((said == truth)[:, truth != 0].mean()) if (truth != 0).any() else 0.0


def blind(scores: Array, common: float, noisy: float, items: float, chance: float) -> Array:
    """Return the p-values of a test that knows everything but which method is the noisy one, if any is."""
    hypotheses = [np.full(METHODS, common)]
    hypotheses += [np.where(np.arange(METHODS) == place, noisy, common) for place in range(METHODS)]
    between = np.linalg.svd(np.eye(METHODS) - 1 / METHODS)[0][:, : METHODS - 1]
    within = np.linalg.svd(np.eye(SEEDS) - 1 / SEEDS)[0][:, : SEEDS - 1]
    contrasts = np.einsum("bms,mi,sj->bij", scores, between, within)
    logs = []
    for variances in hypotheses:
        covariance = between.T @ np.diag(variances) @ between
        size = np.einsum("bij,ik,bkj->b", contrasts, np.linalg.inv(covariance), contrasts)
        logs.append(-size / 2 - (SEEDS - 1) / 2 * np.linalg.slogdet(covariance)[1])
    likelihoods = np.exp(np.array(logs) - np.max(logs, axis=0))
    weights = np.array([1 - chance, *[chance / METHODS] * METHODS])[:, None] * likelihoods
    weights /= weights.sum(0)
    distances = np.abs(differences(scores))
    errors = [np.sqrt((each[FIRST] + each[SECOND]) / SEEDS + 2 * items) for each in hypotheses]
    return np.asarray(sum(w[:, None] * 2 * ndtr(-distances / error) for w, error in zip(weights, errors, strict=True)))


def main() -> None:
    """Print one line per test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boards", type=int, default=1500)
    boards = parser.parse_args().boards
    equal, better, unequal = totals(boards, 1), totals(boards, 2, gap=GAP), totals(boards, 3, is_unequal=True)
    partial = {count: totals(boards, 3 + count, gap=FAR, is_unequal=True, better=count) for count in (1, 2)}
    none, truths = np.zeros(len(FIRST)), {}
    for count in partial:
        is_better = np.arange(METHODS) < count
        truths[count] = is_better[FIRST].astype(int) - is_better[SECOND]
    truth = truths[METHODS // 2]
    variance = float(np.var(differences(equal)))
    left = equal - equal.mean(1, keepdims=True)
    left -= left.mean(2, keepdims=True)
    common = float((left**2).sum((1, 2)).mean()) / ((METHODS - 1) * (SEEDS - 1))
    items = max(variance / 2 - common / SEEDS, 0.0)
    noisy = common + (NOISIER**2 - 1) * SEED**2

    def known(scores: Array) -> Array:
        return np.asarray(2 * ndtr(-np.abs(differences(scores)) / np.sqrt(variance)))

    wrong, power = found(known(equal), equal, none)[0], found(known(better), better, truth)[1]
    print(f"every variance known                  false {wrong:5.1%}  found {power:5.1%}")
    for chance in (0.05, 0.1, 0.2, 0.3, 0.5):

        def test(scores: Array, chance: float = chance) -> Array:
            return blind(scores, common, noisy, items, chance)

        print(
            f"not who is noisier, {chance:4.0%} that one is   false {found(test(equal), equal, none)[0]:5.1%}, "
            f"one noisier {found(test(unequal), unequal, none)[0]:5.1%}  found {found(test(better), better, truth)[1]:5.1%}  "
            + ", ".join(
                f"{count} better {found(test(each), each, truths[count])[0]:5.1%}" for count, each in partial.items()
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
