"""What waits is handed out so that workers keep their base model, and every trial once."""

from __future__ import annotations

import pytest

from harness import Method, MethodTraits
from harness.running.pieces import MOST_AT_ONCE, Pieces


class Packable(Method):
    name = "packable"
    paper = "https://example.org"
    traits = MethodTraits(budget_knob=None)


class Attaching(Packable):
    name = "attaching"

    def attach(self, model, generator):
        return None


class Kinds:
    """All of a registry that pieces need."""

    def method(self, name):
        return Attaching if name == "attaching" else Packable


@pytest.fixture
def pieces():
    return lambda workers=1, pack=1: Pieces(Kinds(), workers, pack)


def trials(make_trial, task="a", seeds=1, methods=("lora",)):
    return [make_trial(task=task, method=method, seed=seed) for method in methods for seed in range(seeds)]


def test_eight_tasks_on_eight_workers_load_eight_models(make_trial, pieces):
    waiting = pieces(workers=8)
    for number in range(8):
        waiting.add(trials(make_trial, task=f"task{number}", seeds=5))
    loaded = {worker: set() for worker in range(8)}
    while waiting:
        for worker in loaded:
            piece, _ = waiting.next(worker)
            loaded[worker] |= {trial.task for trial in piece}
    assert sorted(map(len, loaded.values())) == [1] * 8
    assert set.union(*loaded.values()) == {f"task{number}" for number in range(8)}


def test_a_slow_worker_s_group_is_shared_by_those_who_are_done(make_trial, pieces):
    waiting = pieces(workers=2)
    waiting.add([*trials(make_trial, "slow", 10), *trials(make_trial, "fast", 2)])
    first, _ = waiting.next(0)
    assert first[0].task == "slow"
    by_the_other = []
    while waiting:
        by_the_other += [trial.task for trial in waiting.next(1)[0]]
    assert by_the_other == ["fast"] * 2 + ["slow"] * 9


def test_a_worker_that_has_left_a_group_is_not_counted_there(make_trial, pieces):
    waiting = pieces(workers=2)
    waiting.add([*trials(make_trial, "a", 2), *trials(make_trial, "b"), *trials(make_trial, "c")])
    assert [waiting.next(worker)[0][0].task for worker in (0, 1, 1)] == ["a", "b", "c"]
    waiting.add(trials(make_trial, "b"))
    assert waiting.next(1)[0][0].task == "b", "nobody is on it, and somebody on the other"


def test_a_worker_prefers_the_model_that_it_has(make_trial, pieces):
    waiting = pieces()
    waiting.add([make_trial(seed=0), make_trial(task="b"), make_trial(seed=1, targets=("k",))])
    assert [waiting.next(0)[0][0] for _ in range(3)] == [
        make_trial(seed=0), make_trial(seed=1, targets=("k",)), make_trial(task="b"),
    ]  # fmt: skip


@pytest.mark.parametrize("pack", [0, 1, 2, 8])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_trial_is_in_one_piece_and_what_cannot_be_packed_is_alone(make_trial, pieces, workers, pack):
    waiting, given = pieces(workers, pack), []
    asked = trials(make_trial, seeds=20, methods=("lora", "attaching", "mora")) + trials(make_trial, task="b", seeds=3)
    waiting.add(asked)
    assert len(waiting) == len(asked)
    while waiting:
        for worker in range(workers):
            piece, most = waiting.next(worker)
            given += piece
            assert not piece or most == pack
            assert len({trial.task for trial in piece}) <= 1
            assert len(piece) <= (pack or MOST_AT_ONCE)
            assert len(piece) == 1 or "attaching" not in {trial.method for trial in piece}
    assert sorted(trial.id for trial in given) == sorted(trial.id for trial in asked)


def test_alike_trials_are_neighbours(make_trial, pieces):
    waiting = pieces(pack=8)
    both = trials(make_trial, seeds=3, methods=("lora", "mora"))
    waiting.add(both[::2] + both[1::2])
    assert [trial.method for trial in waiting.next(0)[0]] == ["lora"] * 3 + ["mora"] * 3


def test_what_trains_alone_does_not_break_the_pack_of_the_others_in_two(make_trial, pieces):
    waiting = pieces(pack=9)
    waiting.add(trials(make_trial, methods=("first", "attaching", "last")))
    handed = [[trial.method for trial in waiting.next(0)[0]] for _ in range(2)]
    assert handed == [["first", "last"], ["attaching"]]


def test_what_a_worker_did_not_come_to_is_next_and_what_broke_a_pack_runs_alone_first(make_trial, pieces):
    waiting = pieces(pack=4)
    waiting.add(trials(make_trial, seeds=8))
    first, _ = waiting.next(0)
    waiting.put_back(first[2:])
    waiting.add_alone(first[:2])
    assert waiting.next(0) == ([first[0]], 1)
    assert waiting.next(0) == ([first[1]], 1)
    assert waiting.next(0)[0][:2] == first[2:]


def test_groups_that_others_are_at_come_last(make_trial, pieces):
    waiting = pieces()
    waiting.add([*trials(make_trial, "a", 2), *trials(make_trial, "b", 2)])
    waiting.taken_elsewhere(make_trial(task="a"))
    assert [waiting.next(0)[0][0].task for _ in range(4)] == ["b", "b", "a", "a"]


def test_handing_out_many_trials_takes_little_time(make_trial, pieces):
    """Not quadratic: 20,000 trials in 40 groups, in a few seconds on a slow machine."""
    waiting = pieces(workers=64, pack=1)
    waiting.add([make_trial(task=f"t{number % 40}", seed=number) for number in range(20_000)])
    count = 0
    while waiting:
        count += len(waiting.next(count % 64)[0])
    assert count == 20_000
