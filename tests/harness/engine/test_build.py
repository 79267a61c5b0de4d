"""A lane is built from its trial alone: heads from its seed, calibration with them, groups, schedule."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from harness.contract.task import Example, TaskData
from harness.engine.build import CALIBRATION_BATCHES
from harness.engine.learning_rate import schedule
from harness.errors import ConfigError

HEAD = [f"classifier.{layer}.{kind}" for layer in ("dense", "out_proj") for kind in ("weight", "bias")]


def test_the_length_of_a_recipe_in_epochs(kit):
    base = kit.make_base()
    assert kit.make_lane(base, "lora", steps=0, epochs=2.0).steps == 7, "ten rows twice, by threes"
    assert kit.make_lane(base, "lora", steps=0, epochs=0.01).steps == 1
    assert kit.make_lane(base, "lora", steps=5, epochs=2.0).steps == 5
    with pytest.raises(ConfigError, match="--steps"):
        kit.make_lane(base, "lora", steps=0, epochs=2.0, data=TaskData(iter([Example([3], [3])]), {}))


def test_warm_up_is_a_number_of_updates_or_else_a_fraction_of_them(kit):
    def multipliers(**recipe):
        return kit.make_lane(kit.make_base(), "lora", steps=10, **recipe).multipliers

    after_four = schedule("linear", 10, 4)
    expected = [after_four(step) for step in range(10)]
    assert multipliers(warmup_steps=4, warmup_fraction=0.9) == expected
    assert multipliers(warmup_fraction=0.4) == expected


def test_a_head_that_the_checkpoint_lacked_is_drawn_from_the_trials_seed_alone(kit, method):
    def head(name, seed, fresh):
        lane = kit.make_lane(kit.make_classifier("encoder", fresh=fresh), name, seed=seed)
        return lane.state()["classifier.dense.weight"]

    shared = kit.classifier("encoder").classifier.dense.weight
    first = head(method, 0, HEAD)
    assert torch.equal(first, head("lora", 0, HEAD)), "methods are compared from the same start"
    assert not torch.equal(first, head(method, 1, HEAD))
    assert not torch.equal(first, shared)
    assert torch.equal(head(method, 1, []), shared), "one of the checkpoint is where every trial starts"


def test_a_method_calibrates_with_the_head_that_its_trial_will_train(kit, monkeypatch):
    base = kit.make_classifier("encoder", fresh=HEAD)
    usual = kit.make_lane(base, "lora", seed=1)  # its adapters change nothing before the first update
    seen = []

    def calibrate(self, adapters, calibration):
        first, second = (calibration.batches[place] for place in (0, 1))
        seen.extend([float(calibration.loss(first).detach()), float(calibration.loss(second).detach())])

    monkeypatch.setattr(type(usual.method), "calibrate", calibrate)
    kit.make_lane(base, "lora", seed=1)
    (losses,) = kit.run(base, [usual]).losses.values()
    assert seen[0] == pytest.approx(losses[0], rel=1e-6)
    assert seen[1] != pytest.approx(seen[0], rel=1e-6), "a loss says which batch it is of"


def test_lora_ga_starts_along_the_gradient_of_the_model_that_will_train(kit):
    base = kit.make_classifier("encoder", fresh=HEAD)
    lane = kit.make_lane(base, "lora-ga")
    plain = kit.classifier("encoder").requires_grad_(True)
    drawn = {name: value for name, value in lane.state().items() if name in HEAD}
    plain.load_state_dict(drawn, strict=False)
    again = kit.make_lane(base, "lora")
    for _ in range(CALIBRATION_BATCHES):
        rows = again.rows()
        for row in rows:  # one by one, without padding
            logits = plain(input_ids=torch.from_numpy(row.ids)[None]).logits
            (cross_entropy(logits, torch.from_numpy(row.targets)) / len(rows)).backward()
        again.advance()
    assert drawn.keys() == set(HEAD)
    assert lane.adapters
    for name, adapter in lane.adapters.items():
        gradient = plain.get_submodule(name).weight.grad
        strongest = torch.linalg.svd(gradient).Vh[: len(adapter.a)]
        directions = torch.nn.functional.normalize(adapter.a.detach())
        assert float((directions @ strongest.T).norm() ** 2) == pytest.approx(len(strongest))


def test_building_a_lane_draws_nothing_from_the_process(kit, method):
    base = kit.make_classifier("encoder", fresh=HEAD)
    before = torch.get_rng_state()
    kit.make_lane(base, method)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_biases_and_norms_that_train_whole_are_not_decayed(kit, method):
    base = kit.make_classifier("encoder", fresh=["classifier.dense.weight"])
    lane = kit.make_lane(base, method, weight_decay=0.1)
    adapted = {id(p) for adapter in lane.adapters.values() for p in adapter.parameters()}
    decayed = {group["weight_decay"]: group["params"] for group in lane.optimizer.param_groups[len(adapted) and 1 :]}
    assert set(decayed) == {0.0, 0.1}
    assert {p.ndim for p in decayed[0.0]} == {1}
    assert 1 not in {p.ndim for p in decayed[0.1]}
    assert sum(map(len, decayed.values())) + len(adapted) == len(lane.parameters())
