"""What a trial costs alone is measured on real steps, which leave nothing behind."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import weakref

import psutil
import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from harness.engine import head_loss
from harness.engine.cost import PeakMemory, measure_solo
from harness.engine.pack import Pack
from harness.engine.resident import Base


def test_tokens_are_those_of_the_first_update_without_padding(kit):
    base = kit.make_base()
    lane = kit.make_lane(base, "lora", seed=5)
    first = lane.rows()
    assert len({len(row.ids) for row in first}) > 1, "some are padded"
    cost = measure_solo(base, lambda: lane)
    assert cost.step_tokens == sum(len(row.ids) for row in first)
    assert lane.train_tokens == lane.done * cost.step_tokens, "every step is on the same rows: others cost otherwise"


@pytest.mark.parametrize("micro_batch_size", ["auto", 1])
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


def test_what_a_method_takes_to_make_its_adapters_is_a_cost_of_its_own(kit, monkeypatch):
    base, lora = kit.make_base(), kit.registry.method("lora")
    assert measure_solo(base, lambda: kit.make_lane(base, "lora", steps=2)).initialise_seconds > 0
    monkeypatch.setattr(lora, "calibrate", lambda *_: time.sleep(0.3))
    assert measure_solo(base, lambda: kit.make_lane(base, "lora", steps=2)).initialise_seconds > 0.3


def test_memory_on_a_cpu_is_the_processs_and_says_nothing_of_one_lane_more(kit):
    before = psutil.Process().memory_info().rss
    cost = measure_solo(base := kit.make_base(), lambda: kit.make_lane(base, "lora"))
    assert 0.5 * before < cost.peak_memory_bytes <= psutil.virtual_memory().total
    assert cost.lane_bytes is None
    assert "GPU" in cost.reasons["lane_bytes"]


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


def grouped(layers=2, window=None):
    """A decoder with fewer key and value heads than query heads, and in Gemma's case windows of a few tokens."""
    shape = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 6, "max_position_embeddings": 64}
    torch.manual_seed(0)
    if window is None:
        return LlamaForCausalLM(LlamaConfig(**shape, **heads)).requires_grad_(False).eval()
    config = Gemma3TextConfig(**shape, **heads, sliding_window=window, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    return Gemma3ForCausalLM(config).requires_grad_(False).eval()


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("most_logits", [2**26, 100])
@pytest.mark.parametrize("window", [None, 6, 32])
@pytest.mark.parametrize("recomputes", [False, True])
def test_arithmetic_is_what_the_closed_formula_says(kit, flat, most_logits, window, recomputes, monkeypatch):
    """Linear layers, adapters, the head where labels are, and attention of 4 query heads over 1 of keys and values."""
    monkeypatch.setattr(head_loss, "MOST_LOGITS", most_logits)
    base = Base(grouped(window=window), kit.ToyTask(), "float32", recomputes=recomputes, lays_flat=flat)
    lane = kit.make_lane(base, "lora", budget="lora:r=2")
    lengths = [len(row.ids) for row in lane.rows()]
    labels = sum(len(row.targets) for row in lane.rows())
    is_flat = flat and (window is None or window >= max(lengths))
    cost = measure_solo(base, lambda: lane)
    widths, rank = list(base.layers.values()), 2
    if is_flat:
        tokens = 16 * -(-sum(lengths) // 16)
        labels = 16 * -(-labels // 16)
        rest = tokens - sum(lengths)
        texts = [*lengths, *([max(lengths)] * (rest // max(lengths))), rest % max(lengths)]
    else:
        tokens, texts = len(lengths) * max(lengths), [max(lengths)] * len(lengths)
    frozen = sum(i * o for i, o in widths)
    first = sum(i * o for i, o in widths[:3])  # nobody wants the gradient of the first query's, key's and value's input
    adapters = sum(rank * (i + o) for i, o in widths)
    lowest = sum(rank * i for i, _ in widths[:3])
    linears = 2 * tokens * (2 * frozen - first + 3 * adapters - lowest)
    head = 2 * labels * 2 * 24 * 40
    # Forward scores and values; backward the scores again, then the gradients of both factors of both.
    attention = 2 * 2 * 4 * 6 * sum(n * n for n in texts) * (2 + 5)
    again = 2 * tokens * (frozen + adapters) + 2 * 2 * 4 * 6 * sum(n * n for n in texts) * 2
    assert cost.step_flops == linears + head + attention + (again if recomputes else 0)


def test_a_count_that_fails_is_missing_with_its_reason_and_the_rest_is_measured(kit, monkeypatch):
    def refuse(self, *_):
        raise AssertionError("sdpa_flop_count: query/key/value shapes are incompatible")

    monkeypatch.setattr("harness.engine.cost.FlopCounterMode.__enter__", refuse)
    base = kit.make_base()
    cost = measure_solo(base, lambda: kit.make_lane(base, "lora"))
    assert cost.step_flops is None
    assert "shapes are incompatible" in cost.reasons["step_flops"]
    assert cost.step_seconds > 0
    assert cost.step_tokens > 0


def test_a_probe_that_fails_leaves_all_figures_missing_and_nothing_behind(kit, monkeypatch):
    base, packs = kit.make_base(), []

    def refuse(self, batches):
        packs.append(weakref.ref(self))
        raise torch.OutOfMemoryError("out of memory, for this test")

    with monkeypatch.context() as patch:
        patch.setattr(Pack, "_gradients", refuse)
        cost = measure_solo(base, lambda: kit.make_lane(base, "lora"))
    assert all(getattr(cost, name) is None for name in ("step_seconds", "step_flops", "step_tokens", "lane_bytes"))
    assert all("out of memory" in cost.reasons[name] for name in ("step_seconds", "step_flops", "peak_memory_bytes"))
    assert packs
    assert all(pack() is None for pack in packs)
    (losses,) = kit.run(base, [kit.make_lane(base, "lora")]).losses.values()
    assert len(losses) == 12, "the trial runs"


HOLDS = """
import sys, torch
held = torch.empty(3 * 2**30, dtype=torch.uint8, device="cuda")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.gpu
def test_a_step_is_not_timed_while_another_process_holds_the_card(kit, gpu):
    def cost():
        base = kit.make_base(device=gpu)
        return measure_solo(base, lambda: kit.make_lane(base, "lora"))

    with subprocess.Popen([sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        shared = cost()
        other.stdin.close()
    assert shared.step_seconds is None
    assert "another process holds" in shared.reasons["step_seconds"]
    assert cost().step_seconds > 0


@pytest.mark.gpu
def test_what_other_trials_left_on_the_card_is_not_this_one_s_memory(kit, gpu):
    base = kit.make_base(device=gpu)
    alone = measure_solo(base, lambda: kit.make_lane(base, "lora")).peak_memory_bytes
    left = torch.zeros(256 << 20, dtype=torch.uint8, device=gpu)
    beside = measure_solo(base, lambda: kit.make_lane(base, "lora")).peak_memory_bytes
    assert abs(beside - alone) < left.numel() / 16
