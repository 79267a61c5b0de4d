"""A trial that was saved and goes on ends as if nothing had happened, to the last bit; whatever its method keeps."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save

from harness.engine.checkpoint import restore_lane, save_lane, unsaved
from harness.engine.training import train

STAMP = "as it was"


class Stop(BaseException):
    pass


class StopAt:
    """Saves every lane when ``step`` is done, and stops there."""

    def __init__(self, step, folder):
        self.step, self.folder, self.asked = step, folder, 0

    def is_due(self):
        self.asked += 1
        return self.asked == self.step

    def save(self, lanes):
        for lane in lanes:
            (self.folder / lane.trial.id).write_bytes(save_lane(lane, STAMP))
        raise Stop


def finish(base, lanes, recorder, saver=None):
    train(base, lanes, recorder, saver=saver)
    return recorder


@pytest.fixture(scope="module")
def recorder(kit):
    return type(kit.run(kit.make_base(), [kit.make_lane(kit.make_base(), "lora", steps=1)]))


def assert_same(one, other):
    assert [each["step"] for each in one.history] == [each["step"] for each in other.history]
    assert one.history == other.history, "every loss, to the last bit"
    assert one.evaluation == other.evaluation
    ours, theirs = one.state(), other.state()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    assert (one.done, one.train_tokens, one.pack_lanes) == (other.done, other.train_tokens, other.pack_lanes)


def new(kit, method, precision="float32", **recipe):
    """Return a base and a lane of a trial on it."""
    base = kit.make_base(precision=precision)
    return base, kit.make_lane(base, method, **recipe)


def undisturbed(kit, recorder, method, **recipe):
    """Return a lane that trained to its end."""
    base, lane = new(kit, method, **recipe)
    finish(base, [lane], recorder())
    return lane


def stopped(kit, recorder, folder, method, step, **recipe):
    """Return a lane of a trial that was stopped and went on anew."""
    base, first = new(kit, method, **recipe)
    with pytest.raises(Stop):
        finish(base, [first], recorder(), StopAt(step, folder))
    base, second = new(kit, method, **recipe)
    assert restore_lane(second, str(folder / second.trial.id), STAMP)
    assert second.done == step
    finish(base, [second], recorder())
    return second


def go_on(kit, recorder, folder, method, step, **recipe):
    """Return a lane that trained undisturbed, and one of the same trial that was stopped and went on anew."""
    return undisturbed(kit, recorder, method, **recipe), stopped(kit, recorder, folder, method, step, **recipe)


def test_every_method_goes_on_as_if_nothing_had_happened(kit, recorder, tmp_path, method):
    assert_same(*go_on(kit, recorder, tmp_path, method, 5, steps=8))


LONG = {"steps": 300, "evaluate_at": (150,)}  # every third step is looked at, and step 150 is scored


@pytest.fixture(scope="module")
def long(kit, recorder):
    return undisturbed(kit, recorder, "lora", **LONG)


@pytest.mark.parametrize("step", [1, 2, 3, 149, 150, 151])
def test_losses_between_two_looks_are_kept(kit, recorder, tmp_path, long, step):
    assert_same(long, stopped(kit, recorder, tmp_path, "lora", step, **LONG))


def test_dropout_goes_on_with_the_masks_that_come_next(kit, recorder, tmp_path):
    changes = {"dropout": 0.3}
    assert_same(*go_on(kit, recorder, tmp_path, "lora", 5, steps=12, changes=changes, micro_batch_size=2))


def test_a_pack_goes_on_as_a_pack(kit, recorder, tmp_path):
    def lanes(base):
        return [kit.make_lane(base, name, seed=seed, steps=12) for name in ("lora", "mora") for seed in (0, 1)]

    base = kit.make_base(precision="float32")
    undisturbed = lanes(base)
    finish(base, undisturbed, recorder())
    base = kit.make_base(precision="float32")
    with pytest.raises(Stop):
        finish(base, lanes(base), recorder(), StopAt(6, tmp_path))
    base = kit.make_base(precision="float32")
    again = lanes(base)
    for lane in again:
        assert restore_lane(lane, str(tmp_path / lane.trial.id), STAMP)
    finish(base, again, recorder())
    for one, other in zip(undisturbed, again, strict=True):
        assert_same(one, other)


def test_lanes_at_different_steps_come_to_their_ends(kit, recorder, tmp_path):
    base = kit.make_base(precision="float32")
    with pytest.raises(Stop):
        finish(base, [kit.make_lane(base, "lora", steps=12)], recorder(), StopAt(6, tmp_path))
    base = kit.make_base(precision="float32")
    late, fresh = kit.make_lane(base, "lora", steps=12), kit.make_lane(base, "lora", seed=1, steps=12)
    assert restore_lane(late, str(tmp_path / late.trial.id), STAMP)
    finish(base, [late, fresh], recorder())
    assert (late.done, fresh.done) == (12, 12)


def test_saving_changes_nothing_for_who_goes_on_at_once(kit, recorder, tmp_path):
    class EveryStep:
        def is_due(self):
            return True

        def save(self, lanes):
            assert all(save_lane(lane, STAMP) for lane in lanes)

    base = kit.make_base(precision="float32")
    one, other = kit.make_lane(base, "lora", steps=300), kit.make_lane(base, "lora", steps=300)
    finish(base, [one], recorder())
    finish(base, [other], recorder(), EveryStep())
    assert_same(one, other)
    assert len(other.pending) == 0, "else they would count twice after running out of memory"


def test_what_another_version_or_trial_saved_is_not_used(kit, tmp_path):
    base = kit.make_base()
    lane = kit.make_lane(base, "lora")
    (tmp_path / "saved").write_bytes(save_lane(lane, STAMP))
    assert not restore_lane(kit.make_lane(base, "lora"), str(tmp_path / "saved"), "another")
    assert not restore_lane(kit.make_lane(base, "lora", seed=1), str(tmp_path / "saved"), STAMP)
    assert restore_lane(kit.make_lane(base, "lora"), str(tmp_path / "saved"), STAMP)


@pytest.mark.parametrize("harm", ["no generator", "another shape", "no history"])
def test_a_state_that_lacks_something_changes_nothing(kit, tmp_path, harm):
    base = kit.make_base()
    lane = kit.make_lane(base, "lora")
    for parameter in lane.parameters():
        parameter.data += 1.0
    tensors = load(save_lane(lane, STAMP))
    (tmp_path / "saved").write_bytes(save_lane(lane, STAMP))
    with safe_open(str(tmp_path / "saved"), framework="pt") as file:
        header = file.metadata()
    if harm == "no generator":
        del tensors["generator"]
    elif harm == "another shape":
        name = next(name for name, each in tensors.items() if name.startswith("own.") and each.ndim == 2)
        tensors[name] = tensors[name][:1].clone()
    else:
        header["lane"] = header["lane"].replace('"history"', '"past"')
    (tmp_path / "saved").write_bytes(save(tensors, metadata=header))
    new = kit.make_lane(base, "lora")
    before = new.state()
    with nullcontext() if harm == "another shape" else pytest.raises(KeyError):
        assert not restore_lane(new, str(tmp_path / "saved"), STAMP)
    assert all(torch.equal(value, before[name]) for name, value in new.state().items())
    assert new.done == 0


def test_it_is_safetensors_and_json(kit, tmp_path):
    lane = kit.make_lane(kit.make_base(), "lora")
    (tmp_path / "saved").write_bytes(save_lane(lane, STAMP))
    with safe_open(str(tmp_path / "saved"), framework="pt") as file:
        header = file.metadata()
        assert {"generator", "pending"} < set(file.keys())
    assert json.loads(header["lane"])["done"] == 0


def test_state_outside_of_tensors_is_noticed(kit):
    lane = kit.make_lane(kit.make_base(), "lora")
    before = unsaved(lane)
    assert unsaved(lane) == before
    lane.method.calls = 3
    assert unsaved(lane) != before
    del lane.method.calls
    next(iter(lane.adapters.values())).history = [1]
    assert unsaved(lane) != before


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_best_evaluation_so_far_is_kept(kit, recorder, tmp_path, method):
    one, other = go_on(kit, recorder, tmp_path, method, 5, steps=8, evaluate_at=(2, 4, 6), checkpoint="best")
    assert_same(one, other)
    assert (one.best.step, one.best.score) == (other.best.step, other.best.score)
