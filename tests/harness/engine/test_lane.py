"""A lane has its own order of rows, its own trainable state, and gives copies of it away."""

from __future__ import annotations

import torch

from harness.contract.task import Example, TaskData
from harness.engine.pack import Pack


class Stream:
    """Examples of given lengths, in their order: a plain iterable, which nobody can shuffle."""

    def __init__(self, *lengths):
        self.lengths = lengths

    def __iter__(self):
        for length in self.lengths:
            yield Example([3] * length, [3] * length)


def texts(rows):
    return [row.ids.tolist() for row in rows]


def test_rows_stay_until_their_update_is_done(kit):
    lane = kit.make_lane(kit.make_base(), "lora")
    first = texts(lane.rows())
    assert texts(lane.rows()) == first
    lane.advance()
    assert lane.done == 1
    assert texts(lane.rows()) != first


def test_the_order_of_rows_depends_on_the_seed_alone(kit):
    def order(*settings, data=None):
        lane = kit.make_lane(kit.make_base(), *settings, data=data)
        found = []
        for _ in range(7):  # two epochs of ten rows, and one row of the third
            found += texts(lane.rows())
            lane.advance()
        return found

    data = TaskData([Example([n, n], [n, n]) for n in range(3, 13)], {})
    expected = order("lora", 1e-2, 1, data=data)
    assert order("mora", 3e-3, 1, data=data) == expected
    assert order("full", 1e-4, 1, data=data) == expected
    assert order("lora", 1e-2, 2, data=data) != expected
    every = sorted([n, n] for n in range(3, 13))
    assert sorted(expected[:10]) == sorted(expected[10:20]) == every, "each row once an epoch"
    assert expected[:10] != expected[10:20], "shuffled anew"


def test_held_rows_are_those_of_the_next_update_again_and_again(kit):
    base = kit.make_base()
    free, held = (kit.make_lane(base, "lora", seed=3) for _ in range(2))
    free.advance()
    held.advance()
    expected = texts(free.rows())
    assert texts(held.rows()) == expected
    held.hold_rows()
    for _ in range(3):
        assert texts(held.rows()) == expected
        held.advance()
    free.advance()
    assert texts(free.rows()) != expected, "only the lane that was told so holds its rows"


def test_coming_rows_are_those_that_are_trained_on_and_looking_takes_none(kit):
    lane = kit.make_lane(kit.make_base(), "lora", seed=3)
    lane.rows()
    lane.advance()
    coming = [texts(rows) for rows in lane.upcoming(4)]
    trained = []
    for _ in range(4):
        trained.append(texts(lane.rows()))
        lane.advance()
    assert coming == trained
    assert len(list(lane.upcoming(100))) == lane.steps - lane.done
    stream = kit.make_lane(kit.make_base(), "lora", data=TaskData(Stream(10, 16), {}))
    assert list(stream.upcoming(3)) == [], "what can be read once only is not read ahead"


def test_what_cannot_share_a_batch(kit):
    base = kit.make_base()
    assert kit.make_lane(base, "lora").packs()
    assert not kit.make_lane(base, "full").packs(), "it has a model of its own"
    base = kit.make_classifier("shared positions")
    assert not kit.make_lane(base, "lora").packs(), "it adapts layers that see more than the batch's rows"


def test_state_is_a_copy_of_everything_trained(kit, method):
    base = kit.make_base(() if method == "full" else ("lm_head",))
    lane = kit.make_lane(base, method)
    live = {
        **lane.masters,
        **{f"{name}.{key}": p for name, module in lane.trained().items() for key, p in module.named_parameters()},
    }
    assert {id(p) for p in live.values()} >= {id(p) for p in lane.parameters()}, "everything the optimizer moves"
    state = lane.state()
    assert state.keys() >= live.keys()
    assert all(torch.equal(state[name], p) for name, p in live.items())
    kit.run(base, [lane])
    assert any(not torch.equal(state[name], p) for name, p in live.items()), "training goes on, the copy stays"
    assert all(torch.equal(value, live[name]) for name, value in lane.state().items() if name in live)


def test_a_lane_that_left_a_pack_shares_no_memory_with_the_others(kit):
    base = kit.make_base()
    lanes = [kit.make_lane(base, "lora", seed=seed) for seed in (0, 1)]
    Pack(base, lanes).step()

    def storages(lane):
        return {p.untyped_storage().data_ptr() for p in lane.parameters()}

    assert storages(lanes[0]) & storages(lanes[1]), "stacked, they do"
    before = lanes[0].state()
    lanes[0].leave()
    assert not storages(lanes[0]) & storages(lanes[1])
    after = lanes[0].state()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
