"""From records to the arrays of the statistics, and that nothing is lost on the way."""

import sys
from pathlib import Path

import numpy as np
import pytest

from harness_leaderboard.boards.build import build_boards
from harness_leaderboard.statistics import analyse

SIMULATION = Path(__file__).parents[3] / "benchmarks" / "simulation"


@pytest.fixture
def worlds(monkeypatch):
    monkeypatch.syspath_prepend(str(SIMULATION))
    import worlds

    yield worlds
    sys.modules.pop("worlds", None)


@pytest.mark.parametrize("document", [1, 8])
def test_simulated_boards_say_the_same_through_records_and_as_arrays(make_record, worlds, document):
    world = worlds.World(methods=4, seeds=3, items=64, gap=0.3, document=document)
    scores = worlds.draw(world, np.random.default_rng(3)).scores
    records = [
        make_record(
            method=method,
            seed=seed,
            score=float(scores.totals[place, seed]),
            items=scores.items[place, seed].tolist(),
            item_groups={} if scores.groups is None else {"accuracy": scores.groups.tolist()},
        )
        for place, method in enumerate(scores.methods)
        for seed in scores.seeds
    ]
    (board,) = build_boards(records)
    direct = analyse(scores)
    ranks = {row.label: (row.estimate.best_rank, row.estimate.worst_rank) for row in board.rows}
    assert ranks == {each.method: (each.best_rank, each.worst_rank) for each in direct.estimates}
    through = {
        frozenset((each.first, each.second)): each.adjusted_p_value for each in board.analysis.differences.values()
    }
    for each in direct.differences.values():
        assert through[frozenset((each.first, each.second))] == pytest.approx(each.adjusted_p_value)
        assert each.items == 64 // document


def test_intervals_stay_where_a_metric_of_the_unit_can_be_and_another_units_are_free(make_record):
    answers = {("a", 0): [1, 1, 0, 1, 1, 1, 0, 1], ("a", 1): [1, 0, 1, 1, 0, 1, 0, 0]}
    answers |= {("b", 0): [0, 0, 0, 1, 0, 1, 0, 0], ("b", 1): [0, 1, 0, 0, 0, 0, 0, 1]}

    def intervals(unit):
        records = [
            make_record(method, seed, sum(items) / 8, items=items, metric_details={"accuracy": {"unit": unit}})
            for (method, seed), items in answers.items()
        ]
        (board,) = build_boards(records)
        return [row.estimate.new_items for row in board.rows]

    assert all(0 <= each.low < each.high <= 1 for each in intervals("fraction"))
    free = intervals("points")
    assert any(each.low < 0 for each in free)
    assert any(each.high > 1 for each in free)
    assert [(each.low, each.high) for each in intervals("nats")] == [(max(0, each.low), each.high) for each in free]
    below = intervals("perplexity")  # scores that no perplexity can have: nothing is known of such a metric
    assert [(each.low, each.high) for each in below] == [(each.low, each.high) for each in free]
