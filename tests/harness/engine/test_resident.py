"""The resident model computes what the pretrained one does, is never changed, and knows its own structure."""

from __future__ import annotations

import pytest
import torch
import transformers

from harness.engine.behaviour import position_limit
from harness.engine.resident import Base
from harness.errors import ConfigError

IDS = torch.arange(3, 33).reshape(5, 6)
CLASSIFIERS = ["decoder", "encoder", "shared positions"]


def test_the_base_model_is_untouched(kit, method):
    base = kit.make_base()
    before = {key: value.clone() for key, value in base.model.state_dict().items()}
    kit.run(base, [kit.make_lane(base, method)])
    after = base.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(not slot.parts for slot in base.slots.values())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["language model", *CLASSIFIERS])
def test_without_lanes_it_computes_what_the_pretrained_model_does(kit, kind):
    if kind == "language model":
        plain, base = kit.language_model(), kit.make_base()
    else:
        plain, base = kit.classifier(kind), kit.make_classifier(kind)
    mask = torch.ones_like(IDS)
    mask[1, 4:] = 0
    expected = plain(input_ids=IDS, attention_mask=mask).logits
    assert torch.equal(base.model(input_ids=IDS, attention_mask=mask).logits, expected)


def test_every_linear_layer_but_the_output_head_can_be_adapted(kit):
    base = kit.make_base()
    square, up, down = (24, 24), (24, 36), (36, 24)
    of_a_block = {
        "self_attn.q_proj": square, "self_attn.k_proj": square, "self_attn.v_proj": square, "self_attn.o_proj": square,
        "mlp.gate_proj": up, "mlp.up_proj": up, "mlp.down_proj": down,
    }  # fmt: skip
    expected = {f"model.layers.{n}.{name}": shape for n in range(2) for name, shape in of_a_block.items()}
    assert base.layers == expected
    assert set(base.slots) == set(expected)
    # Two tables of 40 tokens, the linear layers, two norms a block, and the last norm.
    assert base.parameters == 2 * 40 * 24 + 2 * (4 * 24 * 24 + 3 * 24 * 36) + 2 * 2 * 24 + 24


def test_what_trains_whole_is_not_adapted(kit):
    base = kit.make_base(("lm_head", "layers.1", "model.layers.0.mlp"))
    assert set(base.module_slots) == {"lm_head", "model.layers.0.mlp"}, "a pattern is a whole name, or its last part"
    assert set(base.linear_slots) == {
        f"model.layers.{place}"
        for place in [
            *(f"{n}.self_attn.{letter}_proj" for n in (0, 1) for letter in "qkvo"),
            *(f"1.mlp.{name}_proj" for name in ("gate", "up", "down")),
        ]
    }


@pytest.mark.parametrize("kind", ["language model", "decoder", "encoder"])
def test_lanes_of_usual_models_share_a_batch(kit, kind):
    base = kit.make_base() if kind == "language model" else kit.make_classifier(kind)
    assert base.rowwise == set(base.slots)


def test_the_repeated_blocks_are_found(kit):
    base = kit.make_base()
    assert base.blocks == list(base.model.model.layers)
    base = kit.make_classifier("encoder")
    assert base.blocks == list(base.model.roberta.encoder.layer)


def test_a_model_that_is_no_stack_of_blocks_does_not_claim_to_compute_them_again(kit, caplog):
    albert = transformers.AlbertConfig(
        vocab_size=40, embedding_size=16, hidden_size=24, num_attention_heads=2, intermediate_size=36, pad_token_id=0
    )
    model = transformers.AlbertForSequenceClassification(albert).requires_grad_(False)
    base = Base(model, kit.make_classifier("encoder").task, "float32", recomputes=True)
    assert not base.recomputes
    said = "AlbertForSequenceClassification is no stack of blocks, so its activations are kept, not computed again"
    assert [record.getMessage() for record in caplog.records] == [said]


def test_recomputing_activations_changes_no_result(kit, method):
    kept = kit.run(base := kit.make_base(), [kit.make_lane(base, method)])
    base = kit.make_base(recomputes=True)
    again = kit.run(base, [kit.make_lane(base, method)])
    assert bool(kept.losses) == kit.registry.method(method).traits.trains, "what does not train has no losses"
    assert again.losses.keys() == kept.losses.keys()
    for trial, expected in kept.losses.items():
        assert again.losses[trial] == pytest.approx(expected, rel=1e-6)


def test_dropout_of_a_head_is_off_since_no_trial_has_its_seed(kit):
    losses = []
    for dropout in (0.5, 0.5, 0.0):
        torch.manual_seed(0)
        config = transformers.RobertaConfig(**SMALL, max_position_embeddings=40, classifier_dropout=dropout)
        model = transformers.RobertaForSequenceClassification(config).double().requires_grad_(False)
        base = Base(model, kit.ToyClassification(), "float64")
        losses += kit.run(base, [kit.make_lane(base, "lora")]).losses.values()
    assert losses[0] == losses[1] == losses[2]


SMALL = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 2,
         "pad_token_id": 0}  # fmt: skip
TINY_T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
           "decoder_start_token_id": 0, "eos_token_id": 2}  # fmt: skip
TINY_GPT2 = {"vocab_size": 40, "n_embd": 24, "n_layer": 2, "n_head": 2, "pad_token_id": 0, "eos_token_id": 2}
NEAR = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (transformers.DebertaV2Config(**SMALL, **NEAR, position_buckets=32, max_position_embeddings=64), None),
        (transformers.DebertaConfig(**SMALL, **NEAR, max_position_embeddings=64), None),
        (transformers.T5Config(**TINY_T5, relative_attention_num_buckets=32), None),
        (transformers.RobertaConfig(**SMALL, max_position_embeddings=43), 42),
        (transformers.BertConfig(**SMALL, max_position_embeddings=43), 43),
        (transformers.GPT2Config(**TINY_GPT2, n_positions=29), 29),
        (transformers.MptConfig(vocab_size=40, d_model=16, n_layers=1, n_heads=2, max_seq_len=27), 27),
    ],
    ids=lambda each: getattr(each, "model_type", ""),
)
def test_how_long_a_text_may_be_is_what_the_model_has_positions_for(config, limit):
    """Tables of distances, which RoBERTa's and GPT-2's tables of positions are not, have a row for any distance.

    MPT's biases of distances are no weights, and are as many as it has positions.
    """
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config).requires_grad_(False).eval()
    assert position_limit(model) == limit
    text = torch.full((1, limit or 200), 5)
    text[0, -1] = getattr(config, "eos_token_id", None) or 5
    with torch.no_grad():
        model(input_ids=text)  # it can take as many
        if limit is not None:
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=torch.cat([text[:, :1], text], 1))


@pytest.mark.parametrize(
    "config",
    [
        transformers.XLNetConfig(vocab_size=40, d_model=16, n_layer=1, n_head=2, d_inner=24, pad_token_id=0),
        transformers.FNetConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, intermediate_size=24),
    ],
    ids=["its summary is of the last token", "its layers mix all tokens"],
)
def test_an_encoder_that_computes_something_else_of_a_padded_text_is_refused(kit, config):
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config).requires_grad_(False).eval()
    with pytest.raises(ConfigError, match=r"padding a text changes what the model computes of it, by [\d.]+%"):
        Base(model, kit.make_classifier("encoder").task, "float32")
