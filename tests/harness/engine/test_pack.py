"""Packing must not change results: every lane's losses equal its solo run's. Nor may how a step is computed."""

from __future__ import annotations

import pytest
import torch


def test_lanes_of_one_method_lose_as_they_do_alone(kit, packable):
    settings = [(1e-2, 0), (1e-2, 1), (3e-3, 1)]
    solo = [kit.run(base := kit.make_base(), [kit.make_lane(base, packable, *each)]) for each in settings]
    base = kit.make_base()
    packed = kit.run(base, [kit.make_lane(base, packable, *each) for each in settings])
    kit.assert_same_as_solo(packed, solo)
    assert len({tuple(losses) for losses in packed.losses.values()}) == 3


def test_lanes_of_every_method_lose_together_as_they_do_alone(kit):
    settings = [(name, 1e-2 if place % 2 else 3e-3, place % 3) for place, name in enumerate(kit.packable)]
    solo = [kit.run(base := kit.make_base(), [kit.make_lane(base, *each)]) for each in settings]
    base = kit.make_base()
    kit.assert_same_as_solo(kit.run(base, [kit.make_lane(base, *each) for each in settings]), solo)


def test_wholly_trained_modules_are_each_lanes_own(kit):
    trains = ("lm_head", "embed_tokens", "*norm")
    settings = [("lora", 1e-2, 0), ("mora", 1e-3, 1), ("lora", 3e-3, 2)]
    solo = [kit.run(base := kit.make_base(trains), [kit.make_lane(base, *each)]) for each in settings]
    base = kit.make_base(trains)
    before = {name: p.clone() for name, p in base.model.named_parameters()}
    packed = kit.run(base, [kit.make_lane(base, *each) for each in settings])
    kit.assert_same_as_solo(packed, solo)
    for lane in packed.finished_lanes:
        assert lane.task_parameters() == 2 * 40 * 24 + 5 * 24
        head = lane.modules["lm_head"].weight
        assert not torch.equal(head, base.model.get_parameter("lm_head.frozen.weight"))
    assert all(torch.equal(p, before[name]) for name, p in base.model.named_parameters())


def test_micro_batches_give_the_gradient_of_the_whole_batch(kit, method):
    whole = kit.run(base := kit.make_base(), [kit.make_lane(base, method)])
    pieces = kit.run(base := kit.make_base(), [kit.make_lane(base, method, micro_batch_size=1)])
    (expected,), (found,) = whole.losses.values(), pieces.losses.values()
    assert found == pytest.approx(expected, rel=1e-3)  # Adam magnifies rounding


def test_half_precision_trains_float32_masters(kit, method):
    full = kit.run(base := kit.make_base(), [kit.make_lane(base, method)])
    half = kit.run(base := kit.make_base(precision="bfloat16"), [kit.make_lane(base, method)])
    (expected,), (found,) = full.losses.values(), half.losses.values()
    assert found == pytest.approx(expected, rel=0.05)
    (lane,) = half.finished_lanes
    assert {p.dtype for p in lane.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["lora", "dora", "mora", "pissa"])
def test_half_precision_packing_moves_scores_less_than_a_seed_does(kit, name):
    seeds = range(4)

    def half_base():
        return kit.make_base(precision="bfloat16")

    solo = [kit.run(base := half_base(), [kit.make_lane(base, name, seed=s, steps=40)]) for s in seeds]
    base = half_base()
    packed = kit.run(base, [kit.make_lane(base, name, seed=s, steps=40) for s in seeds])
    alone = {trial: losses[-1] for recorder in solo for trial, losses in recorder.losses.items()}
    together = {trial: losses[-1] for trial, losses in packed.losses.items()}
    moved = [abs(together[trial] - alone[trial]) for trial in alone]
    assert max(moved) < max(alone.values()) - min(alone.values())


@pytest.mark.gpu
def test_captured_steps_on_a_gpu_lose_as_eager_steps_on_the_cpu(kit, method, gpu, caplog):
    settings = [(1e-3, 0), (3e-4, 1)] if method != "full" else [(1e-3, 0)]
    solo = [kit.run(base := kit.make_base(), [kit.make_lane(base, method, *each)]) for each in settings]
    base = kit.make_base(device=gpu)
    packed = kit.run(base, [kit.make_lane(base, method, *each) for each in settings])
    for recorder in solo:
        ((trial_id, expected),) = recorder.losses.items()
        assert packed.losses[trial_id] == pytest.approx(expected, rel=1e-3)
    assert not caplog.records, "no warning that a step could not be captured"


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_steps_of_padded_texts_are_captured(kit, kind, gpu, caplog):
    settings = [("lora", 1e-2, 0), ("mora", 3e-3, 1), ("lora", 3e-3, 2)]
    expected = kit.run(base := kit.make_classifier(kind), [kit.make_lane(base, *each) for each in settings])
    found = kit.run(base := kit.make_classifier(kind, gpu), [kit.make_lane(base, *each) for each in settings])
    for trial_id, losses in expected.losses.items():
        assert found.losses[trial_id] == pytest.approx(losses, rel=1e-3)
    assert not caplog.records, "no warning that a step could not be captured"
