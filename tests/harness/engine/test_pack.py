"""Packing must not change results: every lane's losses equal its solo run's. Nor may how a step is computed."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from types import SimpleNamespace

import pytest
import torch

from harness.contract.task import Example, TaskData
from harness.engine.forms import Forms
from harness.engine.pack import Pack


class Alternating:
    """Texts of 16 and 32 tokens in turns, two at a time: on a GPU, batches of two forms. Nobody can shuffle them."""

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        for length in (16, 16, 32, 32) * 6:
            row = torch.randint(3, 40, (length,), generator=generator).tolist()
            yield Example(row, row)


ALTERNATING = TaskData(Alternating(), {"validation": [[3] * 5], "test": [[3] * 5]})


def capture_on_the_cpu(pack, monkeypatch):
    """Let a pack capture its steps as if on a GPU. Return the list of captures, filled as they happen.

    As with a CUDA graph, a capture computes nothing, and a replay fills the gradients that the capture made, without
    the Python code that says which tensor is a parameter's gradient.
    """
    parameters = [parameter for lane in pack.lanes for parameter in lane.parameters()]
    captures = []

    def capture(step, stream, pool):
        states = [state for lane in pack.lanes for state in lane.optimizer.state.values()]
        changed = [*parameters, *(tensor for state in states for tensor in state.values())]
        before = [tensor.detach().clone() for tensor in changed]
        losses = step()
        with torch.no_grad():
            for tensor, value in zip(changed, before, strict=True):
                tensor.copy_(value)
        pack.leaves.values_down()
        gradients = [parameter.grad for parameter in parameters]

        def replay():
            as_before = [parameter.grad for parameter in parameters]
            losses.copy_(step())
            for parameter, gradient, old in zip(parameters, gradients, as_before, strict=True):
                gradient.copy_(parameter.grad)
                parameter.grad = old

        captures.append(step)
        return SimpleNamespace(replay=replay), losses

    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr("harness.engine.replay.capture", capture)
    monkeypatch.setattr("torch.cuda.Stream", lambda device: stream)
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: stream)
    monkeypatch.setattr("torch.cuda.stream", lambda stream: nullcontext())
    monkeypatch.setattr("torch.cuda.graph_pool_handle", lambda: None)
    monkeypatch.setattr("torch.cuda.default_generators", [None])
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    pack._forms = Forms()
    pack._capture([])
    return captures


SETTINGS = [(1e-2, 0), (1e-2, 1), (3e-3, 1)]  # learning rate, seed


@pytest.fixture(scope="module")
def alone(kit):
    """Return what trains a lane by itself, once for all that is compared with it."""

    @cache
    def train_alone(method, learning_rate, seed):
        base = kit.make_base()
        return kit.run(base, [kit.make_lane(base, method, learning_rate, seed)])

    return train_alone


def test_lanes_of_one_method_lose_as_they_do_alone(kit, alone, packable):
    solo = [alone(packable, *each) for each in SETTINGS]
    base = kit.make_base()
    packed = kit.run(base, [kit.make_lane(base, packable, *each) for each in SETTINGS])
    kit.assert_same_as_solo(packed, solo)
    assert len({tuple(losses) for losses in packed.losses.values()}) == 3


def test_lanes_of_every_method_lose_together_as_they_do_alone(kit, alone):
    settings = [(name, *SETTINGS[place % 3]) for place, name in enumerate(kit.packable)]
    solo = [alone(*each) for each in settings]
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


def test_micro_batches_give_the_gradient_of_the_whole_batch(kit, alone, method):
    whole = alone(method, *SETTINGS[0])
    pieces = kit.run(base := kit.make_base(), [kit.make_lane(base, method, micro_batch_size=1)])
    (expected,), (found,) = whole.losses.values(), pieces.losses.values()
    assert found == pytest.approx(expected, rel=1e-6)


def test_half_precision_trains_float32_masters(kit, alone, method):
    full = alone(method, *SETTINGS[0])
    half = kit.run(base := kit.make_base(precision="bfloat16"), [kit.make_lane(base, method)])
    (expected,), (found,) = full.losses.values(), half.losses.values()
    # Of the model as it is, and after one update: later ones magnify what half precision rounds.
    assert found[:2] == pytest.approx(expected[:2], rel=0.01)
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


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
@pytest.mark.parametrize("lanes", [1, 2])
def test_a_method_sees_the_gradients_of_the_captured_step_that_ran_last(kit, precision, lanes, monkeypatch):
    """AdaLoRA reads them after every step, and batches of every form are captured apart."""

    def make_pack():
        base = kit.make_base(precision=precision)
        settings = {"batch_size": 2, "steps": 40, "data": ALTERNATING}
        return Pack(base, [kit.make_lane(base, "adalora", seed=seed, **settings) for seed in range(lanes)])

    eager, captured = make_pack(), make_pack()
    expected = [eager.step().tolist() for _ in range(12)]
    captures = capture_on_the_cpu(captured, monkeypatch)
    found = [captured.step().tolist() for _ in range(12)]
    assert len(captures) == 2
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-3, atol=0)
    for lane, other in zip(captured.lanes, eager.lanes, strict=True):
        for name, adapter in lane.adapters.items():  # scores are tiny
            torch.testing.assert_close(adapter.scores(), other.adapters[name].scores(), rtol=1e-3, atol=0)


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
@pytest.mark.parametrize("name", ["adalora", "relora"])
def test_captured_steps_of_two_forms_leave_a_method_what_eager_steps_on_the_cpu_do(kit, name, gpu, caplog):
    """AdaLoRA reads the gradients after every step, and ReLoRA writes into weights and moments in between."""

    def trained(device):
        base = kit.make_base(device=device)
        settings = {"batch_size": 2, "steps": 40, "data": ALTERNATING}
        lanes = [kit.make_lane(base, name, 1e-3, seed, **settings) for seed in (0, 1)]
        return kit.run(base, lanes), lanes

    (expected, cpu_lanes), (found, gpu_lanes) = trained("cpu"), trained(gpu)
    assert not caplog.records, "no warning that a step could not be captured"
    for trial_id, losses in expected.losses.items():
        assert found.losses[trial_id] == pytest.approx(losses, rel=1e-3)
    for cpu_lane, gpu_lane in zip(cpu_lanes, gpu_lanes, strict=True):
        for layer, reference in cpu_lane.adapters.items():
            adapter, change = gpu_lane.adapters[layer], reference.delta_weight()
            assert (adapter.delta_weight().cpu() - change).norm() <= 0.02 * change.norm()  # both 0: all pruned
            if name == "adalora":
                torch.testing.assert_close(
                    adapter.scores().cpu(), reference.scores(), rtol=1e-3, atol=0, check_dtype=False
                )
                assert torch.equal(adapter.values.cpu() != 0, reference.values != 0), "the same triplets are kept"


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_steps_of_padded_texts_are_captured(kit, kind, gpu, caplog):
    settings = [("lora", 1e-2, 0), ("mora", 3e-3, 1), ("lora", 3e-3, 2)]
    expected = kit.run(base := kit.make_classifier(kind), [kit.make_lane(base, *each) for each in settings])
    found = kit.run(base := kit.make_classifier(kind, gpu), [kit.make_lane(base, *each) for each in settings])
    for trial_id, losses in expected.losses.items():
        assert found.losses[trial_id] == pytest.approx(losses, rel=1e-3)
    assert not caplog.records, "no warning that a step could not be captured"
