"""Texts that lie flat, one after another, get what they get in rows of their own; models that cannot are found out."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from harness.contract.task import TaskData
from harness.engine.attention import attention
from harness.engine.pack import Pack
from harness.engine.resident import Base

SHAPE = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2, "pad_token_id": 0}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}


def llama():
    return LlamaForCausalLM(LlamaConfig(**SHAPE, **HEADS))


def gemma(window=64):
    config = Gemma3TextConfig(**SHAPE, **HEADS, head_dim=6, sliding_window=window, bos_token_id=1, eos_token_id=2)
    return Gemma3ForCausalLM(config)


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=24, n_layer=2, n_head=2, n_positions=64))


def opt():
    return OPTForCausalLM(
        OPTConfig(vocab_size=40, hidden_size=24, num_hidden_layers=2, ffn_dim=36, num_attention_heads=2,
                  max_position_embeddings=64, word_embed_proj_dim=24)
    )  # fmt: skip


def mistral():
    return MistralForCausalLM(MistralConfig(**SHAPE, **HEADS, sliding_window=7))


def bloom():
    return BloomForCausalLM(BloomConfig(vocab_size=40, hidden_size=24, n_layer=2, n_head=2))


def mamba():
    return MambaForCausalLM(MambaConfig(vocab_size=40, hidden_size=24, num_hidden_layers=2, state_size=4))


def base_of(build, kit, flat=True):
    torch.manual_seed(0)
    model = build().double().requires_grad_(False).eval()
    with torch.no_grad():  # so that attention matters
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return Base(model, kit.ToyTask(), "float64", lays_flat=flat)


@pytest.mark.parametrize(
    ("build", "longest"),
    [(llama, 2**30), (gemma, 64), (gpt2, 2**30), (mistral, 7), (bloom, 0), (mamba, 0)],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_which_models_can_have_texts_lie_flat(build, longest, kit):
    assert base_of(build, kit).longest_flat == longest


def test_texts_lie_flat_only_where_asked_for_on_a_cpu(kit):
    assert kit.make_base().longest_flat == 0
    assert kit.make_classifier("decoder").longest_flat == 0


@pytest.mark.parametrize("build", [llama, gemma, gpt2])
@pytest.mark.parametrize("micro_batch_size", ["auto", 2])
def test_lanes_lose_flat_what_they_lose_in_rows(build, micro_batch_size, kit):
    settings = [("lora", 1e-2, 0), ("mora", 3e-3, 1), ("dora", 3e-3, 2), ("lora", 3e-3, 0)]

    def run(flat):
        base = base_of(build, kit, flat)
        lanes = [kit.make_lane(base, *each, micro_batch_size=micro_batch_size, clip_norm=0.1) for each in settings]
        return kit.run(base, lanes)

    rows, flat = run(flat=False), run(flat=True)
    assert rows.losses.keys() == flat.losses.keys()
    for trial_id, expected in rows.losses.items():
        assert flat.losses[trial_id] == pytest.approx(expected, rel=1e-9)
    assert all(lane.forms for lane in flat.finished_lanes)


def test_a_pack_of_flat_texts_loses_what_its_lanes_lose_alone(kit, packable):
    settings = [(1e-2, 0), (1e-2, 1), (3e-3, 1)]
    solo = [kit.run(base := base_of(llama, kit), [kit.make_lane(base, packable, *each)]) for each in settings]
    base = base_of(llama, kit)
    kit.assert_same_as_solo(kit.run(base, [kit.make_lane(base, packable, *each) for each in settings]), solo)


def test_texts_longer_than_a_window_have_rows_of_their_own(kit):
    base = base_of(mistral, kit)
    lane = kit.make_lane(base, "lora")
    pack = Pack(base, [lane])
    pack.step()
    assert max(len(row.ids) for row in lane.rows()) > 7
    assert lane.padded_tokens > lane.train_tokens, "each is padded to the longest"


def test_flat_texts_are_hardly_padded(kit):
    base = base_of(llama, kit)
    data = kit.ToyTask().load(kit.make_lane(base, "lora").context)
    data = TaskData([example for example in data.train] * 20, data.splits)
    lanes = [kit.make_lane(base, "lora", seed=seed, batch_size=32, steps=30, data=data) for seed in range(4)]
    kit.run(base, lanes)
    assert {lane.forms for lane in lanes} == {lanes[0].forms}
    assert lanes[0].forms <= 8
    padding = [1 - lane.train_tokens / lane.padded_tokens for lane in lanes]
    assert max(padding) < 0.1


@pytest.mark.parametrize("masked", [True, False])
def test_one_new_token_sees_through_shared_keys_what_it_sees_through_copies(masked):
    """Decoding with grouped heads: keys and values are not copied for each head, and the output is the same."""
    torch.manual_seed(0)
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 3, True
    query, key, value = (torch.randn(2, heads, n, 8) for heads, n in ((6, 1), (2, 5), (2, 5)))
    mask = torch.tensor([[False, True, True, True, True], [True, True, True, True, False]]) if masked else None
    found, _ = attention(module, query, key, value, None if mask is None else mask[:, None, None], scaling=0.3)
    scores = 0.3 * query @ key.repeat_interleave(3, 1).mT
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    expected = (scores.softmax(-1) @ value.repeat_interleave(3, 1)).transpose(1, 2)
    torch.testing.assert_close(found, expected)
