"""Each lane's loss is the mean over its own labels, whatever else is in the batch and however logits are computed."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, linear
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma4TextConfig,
    GraniteConfig,
)

from harness.contract.task import Example, ModelKind
from harness.engine import head_loss
from harness.engine.batch import Row, collate, encode
from harness.engine.head_form import PLAIN, head_form
from harness.engine.losses import lane_losses
from harness.engine.training import evaluating


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_classifiers_of_padded_texts_lose_as_they_do_alone_and_row_by_row(kit, kind):
    settings = [("lora", 1e-2, 0), ("mora", 3e-3, 1), ("lora", 3e-3, 2)]
    solo = [kit.run(base := kit.make_classifier(kind), [kit.make_lane(base, *each)]) for each in settings]
    base = kit.make_classifier(kind)
    lanes = [kit.make_lane(base, *each) for each in settings]
    heads = [lane.modules["score" if kind == "decoder" else "classifier"] for lane in lanes]
    expected = []
    for lane, head in zip(lanes, heads, strict=True):  # each row alone, without padding, through the lane's own head
        with evaluating(base, lane) as model:
            logits = torch.cat([model(input_ids=torch.from_numpy(row.ids)[None]).logits for row in lane.rows()])
        targets = torch.tensor([int(row.targets[0]) for row in lane.rows()])
        expected.append(float(cross_entropy(logits, targets)))
        assert head.training is False
    packed = kit.run(base, lanes)
    kit.assert_same_as_solo(packed, solo)
    assert [packed.losses[lane.trial.id][0] for lane in lanes] == pytest.approx(expected, rel=1e-5)


def test_a_regression_loses_its_mean_squared_error_lane_by_lane():
    targets = [0.0, 2.0, 3.0, 1.0]
    rows = [Row(np.array([3, 4]), None, np.array([target], dtype=np.float32)) for target in targets]
    (batch,) = collate([rows[:2], rows[2:]], pad_token=0)
    outputs = SimpleNamespace(logits=torch.tensor([[1.0], [2.0], [3.0], [5.0]]))
    losses = lane_losses(lambda **_: outputs, ModelKind.REGRESSION, batch)
    assert losses.tolist() == [(1 + 0) / 2, (0 + 16) / 2]


@torch.no_grad()
def test_logits_are_computed_only_where_labels_are(kit, monkeypatch):
    """And a lane with few labels loses their mean, not a share of what another lane's many labels lose."""
    model, seen = kit.language_model(), []
    ids = list(range(3, 13))
    logits = model(input_ids=torch.tensor([ids])).logits[0]
    one, six = (encode(Example(ids, [-100] * n + ids[n:]), ModelKind.CAUSAL_LM) for n in (9, 4))
    expected = [float(cross_entropy(logits[n - 1 : 9], torch.tensor(ids[n:]))) for n in (9, 4)]
    (batch,) = collate([[one], [six]], pad_token=0, causal=True)
    with monkeypatch.context() as patch:
        patch.setattr(head_loss, "linear", lambda x, *rest: seen.append(x.shape) or linear(x, *rest))
        losses = lane_losses(model, ModelKind.CAUSAL_LM, batch)
    assert losses.tolist() == pytest.approx(expected, rel=1e-6)
    assert seen == [(2 * 6, 24)], "as many places in each lane as the lane with most labels has"


@pytest.mark.parametrize("trains", [(), ("lm_head",)])
def test_logits_in_pieces_give_the_same_losses(kit, trains, monkeypatch):
    settings = [("lora", 1e-2, 0), ("mora", 3e-3, 1), ("lora", 3e-3, 2)]
    base = kit.make_base(trains)
    whole = kit.run(base, [kit.make_lane(base, *each) for each in settings])
    monkeypatch.setattr(
        "harness.engine.head_loss.MOST_LOGITS", 200
    )  # a step has about 3 lanes x 20 positions x 40 tokens
    base = kit.make_base(trains)
    pieces = kit.run(base, [kit.make_lane(base, *each) for each in settings])
    assert pieces.losses.keys() == whole.losses.keys()
    for trial_id, expected in whole.losses.items():
        assert pieces.losses[trial_id] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_of_a_private_model_trains_in_half_precision_where_logits_come_in_pieces(kit, tied, monkeypatch):
    def losses():
        base = kit.make_base(precision="bfloat16", model=kit.language_model(tied))
        (found,) = kit.run(base, [kit.make_lane(base, "full", learning_rate=3e-3)]).losses.values()
        return found

    whole = losses()
    monkeypatch.setattr("harness.engine.head_loss.MOST_LOGITS", 200)
    assert losses() == pytest.approx(whole, rel=2e-3)


TINY = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}  # fmt: skip
CAPPED = {**TINY, "head_dim": 12, "final_logit_softcapping": 0.5}


@pytest.mark.parametrize(
    "config",
    [
        GraniteConfig(**TINY, logits_scaling=7.0),
        CohereConfig(**TINY, logit_scale=0.3),
        Gemma2Config(**CAPPED),
        Gemma4TextConfig(**CAPPED, hidden_size_per_layer_input=0, global_head_dim=12),
    ],
    ids=lambda config: config.model_type,
)
@pytest.mark.parametrize("trains", [(), ("lm_head",)])
def test_losses_are_of_the_logits_that_the_model_makes_of_its_heads_output(kit, config, trains, monkeypatch):
    """And so are their gradients, whatever the configuration calls it, and though logits never exist whole."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).double().requires_grad_(False).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    monkeypatch.setattr("harness.engine.head_loss.MOST_LOGITS", 200)
    wanted = head_form(model)
    base = kit.make_base(trains, model=model)
    assert wanted not in (None, PLAIN)
    lane = kit.make_lane(base, "lora", steps=3)
    (found,) = kit.run(base, [lane]).losses.values()
    monkeypatch.setattr("harness.engine.losses.head_form", lambda model: None)  # then it takes the model's own logits
    (expected,) = kit.run(base, [again := kit.make_lane(base, "lora", steps=3)]).losses.values()
    assert found == pytest.approx(expected, rel=1e-9)
    for name, value in lane.state().items():
        torch.testing.assert_close(value, again.state()[name], rtol=1e-5, atol=1e-7)


def test_a_head_whose_output_becomes_something_else_is_left_to_its_model(kit):
    class Sorted(type(kit.language_model())):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits.sort(-1).values
            return output

    model = kit.language_model()
    assert head_form(model) == PLAIN
    model.__class__ = Sorted
    other = copy.deepcopy(model)
    assert head_form(other) is None
    ids = list(range(3, 13))
    (batch,) = collate([[encode(Example(ids, ids), ModelKind.CAUSAL_LM)]], pad_token=0, causal=True)
    expected = cross_entropy(other(input_ids=torch.tensor([ids])).logits[0, :-1], torch.tensor(ids[1:]))
    torch.testing.assert_close(
        lane_losses(other, ModelKind.CAUSAL_LM, batch)[0], expected.detach(), rtol=1e-6, atol=0.0
    )


def test_logits_that_the_model_caps_are_capped_however_many_there_are(kit, monkeypatch):
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=40, hidden_size=24, intermediate_size=36, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=12, max_position_embeddings=64, final_logit_softcapping=1e-3, pad_token_id=0,
    )  # fmt: skip
    base = kit.make_base(model=Gemma2ForCausalLM(config).requires_grad_(False))
    monkeypatch.setattr("harness.engine.head_loss.MOST_LOGITS", 200)
    recorder = kit.run(base, [kit.make_lane(base, "lora", steps=2)])
    ((first, _),) = recorder.losses.values()
    assert first == pytest.approx(math.log(40), abs=2e-3), "of 40 logits within a thousandth of zero"


@pytest.mark.gpu
@pytest.mark.parametrize("trains", [(), ("lm_head",)])
def test_logits_in_pieces_and_recomputing_are_captured(kit, trains, monkeypatch, caplog):
    settings = [("lora", 1e-2, 0), ("mora", 3e-3, 1), ("lora", 3e-3, 2)]
    expected = kit.run(base := kit.make_base(trains), [kit.make_lane(base, *each) for each in settings])
    monkeypatch.setattr("harness.engine.head_loss.MOST_LOGITS", 200)
    base = kit.make_base(trains, device="cuda", recomputes=True)
    found = kit.run(base, [kit.make_lane(base, *each) for each in settings])
    for trial_id, losses in expected.losses.items():
        assert found.losses[trial_id] == pytest.approx(losses, rel=1e-3)
    assert not caplog.records, "no warning that a step could not be captured"
