"""What a trial costs alone is measured on real steps, which leave nothing behind."""

from __future__ import annotations

import threading
import time

import psutil
import pytest
import torch

from harness.engine.cost import PeakMemory, measure_solo
from harness.engine.pack import Pack


def test_tokens_are_those_of_the_first_update_without_padding(kit):
    base = kit.make_base()
    lane = kit.make_lane(base, "lora", seed=5)
    first = lane.rows()
    assert len({len(row.ids) for row in first}) > 1, "some are padded"
    cost = measure_solo(base, lambda: lane)
    assert cost.step_tokens == sum(len(row.ids) for row in first)
    assert lane.train_tokens == lane.done * cost.step_tokens, "every step is on the same rows: others cost otherwise"


@pytest.mark.parametrize("micro_batch_size", [0, 1])
def test_arithmetic_grows_with_the_rank_as_the_formula_says(kit, micro_batch_size):
    """A LoRA of one rank more multiplies, for a token, with I + O numbers more, three times."""
    base = kit.make_base()

    def measure(budget):
        lane = kit.make_lane(base, "lora", budget=budget, micro_batch_size=micro_batch_size)
        lengths = [len(row.ids) for row in lane.rows()]
        padded = sum(lengths) if micro_batch_size == 1 else len(lengths) * max(lengths)
        return measure_solo(base, lambda: lane).step_flops, padded

    (small, tokens), (large, _) = measure("lora:r=2"), measure("lora:r=5")
    in_and_out = sum(i + o for i, o in base.layers.values())
    # Forward, the gradient of A and B, the gradient of the input. Nobody wants that of the first block's query, key
    # and value layers: nothing below them trains.
    assert large - small == 3 * tokens * 2 * (3 * in_and_out - 3 * 24)


@pytest.mark.parametrize(("steps", "is_timed"), [(1, False), (2, True), (12, True)])
def test_a_trial_of_one_step_has_no_time_of_a_step(kit, steps, is_timed):
    base, built = kit.make_base(), []

    def build():
        built.append(kit.make_lane(base, "lora", steps=steps))
        return built[-1]

    cost = measure_solo(base, build)
    assert (cost.step_seconds is not None) == is_timed
    assert cost.step_seconds is None or 0 < cost.step_seconds < 10
    assert cost.step_tokens > 0
    assert cost.step_flops > 0
    (lane,) = built
    assert lane.done <= steps


def test_memory_on_a_cpu_is_the_processs_and_says_nothing_of_one_lane_more(kit):
    before = psutil.Process().memory_info().rss
    cost = measure_solo(base := kit.make_base(), lambda: kit.make_lane(base, "lora"))
    assert 0.5 * before < cost.peak_memory_bytes <= psutil.virtual_memory().total
    assert cost.lane_bytes == 0


def test_a_peak_that_is_over_is_remembered():
    before = psutil.Process().memory_info().rss
    with PeakMemory(torch.device("cpu")) as peak:
        large = torch.ones(2**25)  # 128 MiB
        time.sleep(0.5)
        del large
    assert psutil.Process().memory_info().rss < before + 2**26
    assert peak.bytes() > before + 2**26


def test_a_trial_that_cannot_start_leaves_no_thread_behind(kit):
    def build():
        raise RuntimeError("no such lane")

    with pytest.raises(RuntimeError, match="no such lane"):
        measure_solo(kit.make_base(), build)
    deadline = time.monotonic() + 5
    while any("_sample" in thread.name for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_measuring_leaves_no_trace(kit, method):
    base = kit.make_base()
    model = {key: value.clone() for key, value in base.model.state_dict().items()}
    random = torch.get_rng_state()
    measure_solo(base, lambda: kit.make_lane(base, method))
    assert all(torch.equal(value, model[key]) for key, value in base.model.state_dict().items())
    assert all(not slot.parts for slot in base.slots.values())
    assert not any(p.requires_grad or p.grad is not None for p in base.model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_measuring_changes_nothing_for_lanes_at_work(kit):
    def losses(measures):
        base = kit.make_base()
        lanes = [kit.make_lane(base, name, seed=seed) for name, seed in (("lora", 0), ("lora", 1), ("relora", 2))]
        pack, found = Pack(base, lanes), []
        for step in range(6):
            if measures and step == 3:
                # The same data, rows and seed as a lane at work.
                measure_solo(base, lambda: kit.make_lane(base, "lora", data=lanes[0].data))
            found.append(pack.step().tolist())
        return found

    assert losses(measures=True) == losses(measures=False)
