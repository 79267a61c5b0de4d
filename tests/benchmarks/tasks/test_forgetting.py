"""Forgetting: cross-entropy against the base model's own distribution, for adapters and for private copies."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers

from harness import TaskContext
from harness.bases import resolve
from harness.engine.layers import set_submodule
from harness.engine.slots import LinearSlot
from harness_benchmarks.forgetting import METRICS, SOURCE, measure_forgetting

torch.set_num_threads(1)
TEXT = "\n = Title = \n\n The quick brown fox jumps over the lazy dog .\n" * 20
LAYER = "model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(resolve("nano"))


@pytest.fixture
def data_dir(tmp_path):
    folder = tmp_path / SOURCE.folder
    folder.mkdir(parents=True)
    (folder / "wiki.test.raw").write_text(TEXT)
    return tmp_path


def tiny(seed=0):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=259, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        initializer_range=0.5,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def measure(model, base, tokenizer, data_dir, **sizes):
    return measure_forgetting(
        model, TaskContext(tokenizer=tokenizer, recipe=None, seed=0, data_dir=data_dir, base_model=base), **sizes
    )


def expected(tuned, base, tokens, starts, length):
    """Return the mean cross-entropy and divergence, position by position."""
    cross, divergence = [], []
    for start in starts:
        ids = torch.tensor([tokens[start : start + length]])
        with torch.no_grad():
            p, q = (torch.softmax(model(input_ids=ids).logits.double(), -1)[0] for model in (base, tuned))
        for t in range(length):
            cross.append(-sum(float(a) * float(b.log()) for a, b in zip(p[t], q[t], strict=True)))
            divergence.append(sum(float(a) * float((a / b).log()) for a, b in zip(p[t], q[t], strict=True)))
    return sum(cross) / len(cross), sum(divergence) / len(divergence)


def test_a_private_copy_is_compared_with_the_resident_base(tokenizer, data_dir):
    base, tuned = tiny(), tiny()
    with torch.no_grad():
        tuned.lm_head.weight.mul_(1.5)
    found = measure(tuned, base, tokenizer, data_dir, windows=2, length=12)
    tokens = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    cross, divergence = expected(tuned, base, tokens, [0, len(tokens) - 12], 12)
    assert found.metrics["forgetting"] == pytest.approx(cross, rel=1e-4)
    assert found.metrics["forgetting_excess"] == pytest.approx(divergence, rel=1e-3)
    assert divergence > 0.01
    assert len(found.items["forgetting"]) == 2


def test_adapters_are_taken_out_for_the_base_and_put_back(tokenizer, data_dir):
    model, plain = tiny(), tiny()
    slot = LinearSlot(model.get_submodule(LAYER))
    set_submodule(model, LAYER, slot)
    delta = torch.randn(slot.linear[0].weight.shape, generator=torch.Generator().manual_seed(1))
    slot.parts = ((lambda x, base_output: base_output + x @ delta.T, 1),)
    tuned = copy.deepcopy(plain)
    with torch.no_grad():
        tuned.get_submodule(LAYER).weight.add_(delta)
    found = measure(model, model, tokenizer, data_dir, windows=3, length=20)
    apart = measure(tuned, plain, tokenizer, data_dir, windows=3, length=20)
    assert found.metrics == pytest.approx(dict(apart.metrics), rel=1e-4)
    assert found.metrics["forgetting_excess"] > 0.01
    assert slot.parts


def test_an_unchanged_model_has_forgotten_nothing(tokenizer, data_dir):
    base = tiny()
    found = measure(base, base, tokenizer, data_dir, windows=4, length=16)
    assert found.metrics["forgetting_excess"] == pytest.approx(0.0, abs=1e-6)
    assert 0 < found.metrics["forgetting"] < torch.log(torch.tensor(259.0))  # the entropy of 259 tokens at most


def test_without_the_text_it_is_null_with_a_reason(tokenizer, tmp_path):
    base = tiny()
    found = measure(base, base, tokenizer, tmp_path)
    assert found.metrics == dict.fromkeys(METRICS)
    assert "wikitext/wikitext-2-raw" in found.reasons["forgetting"]
    assert set(found.reasons) == set(METRICS)


def test_without_a_base_model_it_is_null_with_a_reason(tokenizer, data_dir):
    found = measure(tiny(), None, tokenizer, data_dir)
    assert found.metrics == dict.fromkeys(METRICS)
    assert "no base model" in found.reasons["forgetting_excess"]
