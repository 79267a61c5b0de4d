"""Scoring against the plain way: one example at a time, no padding, no tricks."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoTokenizer

from harness.bases import resolve
from harness.contract.task import IGNORE, Example, ModelKind
from harness.engine.decoding import generate
from harness.engine.evaluation import negative_log_likelihoods, predict, training_loss

TOKENIZER = AutoTokenizer.from_pretrained(resolve("nano"))
WORDS = len(TOKENIZER)


def draw(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, WORDS, (length,), generator=generator).tolist() for length in lengths]


LENGTHS = [7, 3, 12, 5, 5, 9, 2]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_likelihoods_equal_those_of_a_plain_loop(model, batch_size):
    examples = [Example(ids, [IGNORE] * (n % 4) + ids[n % 4 :]) for n, ids in enumerate(draw(LENGTHS))]
    examples.append(Example([5, 6, 7], [IGNORE] * 3))  # nothing to score
    expected = []
    for example in examples:
        with torch.no_grad():
            log_probabilities = model(torch.tensor([example.input_ids])).logits[0].log_softmax(-1)
        terms = [
            -float(log_probabilities[place - 1, label])
            for place, label in enumerate(example.labels)
            if place and label != IGNORE
        ]
        expected.append(sum(terms))
    found = negative_log_likelihoods(model, examples, TOKENIZER.pad_token_id, batch_size)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert found[-1] == 0.0


def test_nothing_is_left_behind_in_the_model(model):
    head = model.get_output_embeddings()
    broken = [Example([WORDS + 5, 3], [IGNORE, 3])]  # outside the vocabulary: the forward pass raises
    with pytest.raises(IndexError):
        negative_log_likelihoods(model, broken, 0)
    assert not head._forward_pre_hooks
    (score,) = negative_log_likelihoods(model, [Example([5, 6], [IGNORE, 6])], 0)
    assert score > 0


def score(model, what):
    examples = [Example(ids, [IGNORE, *ids[1:]]) for ids in draw([*LENGTHS, *LENGTHS])]
    if what == "likelihoods":
        return negative_log_likelihoods(model, examples, TOKENIZER.pad_token_id)
    if what == "loss":
        return [training_loss(model, ModelKind.CAUSAL_LM, examples, TOKENIZER.pad_token_id)]
    return generate(model, TOKENIZER, [each.input_ids for each in examples], 6)


@pytest.mark.parametrize("what", ["likelihoods", "loss", "texts"])
@pytest.mark.parametrize("fits", [1, 4])
def test_short_of_memory_a_model_is_scored_in_smaller_batches_with_the_same_result(model, what, fits, caplog):
    model, sizes = copy.deepcopy(model), []  # what fits is remembered
    expected = score(model, what)

    def small_device(module, args, kwargs):
        rows = len(kwargs["input_ids"])
        if rows > fits:
            raise torch.OutOfMemoryError("out of memory, for this test")
        sizes.append(rows)

    with model.register_forward_pre_hook(small_device, with_kwargs=True):
        found = score(model, what)
    assert found == (expected if what == "texts" else pytest.approx(expected, rel=1e-5))
    assert fits / 2 < max(sizes) <= fits
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == {1: 4, 4: 2}[fits], "what fits is found once"
    assert all("out of memory while scoring; goes on with" in each for each in said)


@pytest.mark.parametrize("fits", [1, 4, 64])
def test_a_classifier_puts_out_what_it_does_for_each_text_alone_also_when_short_of_memory(kit, fits, caplog):
    model = kit.classifier("encoder")
    examples = [Example([each % 40 for each in ids], 0) for ids in draw([*LENGTHS, *LENGTHS])]
    with torch.no_grad():
        expected = torch.cat([model(input_ids=torch.tensor([each.input_ids])).logits for each in examples])

    def small_device(module, args, kwargs):
        if len(kwargs["input_ids"]) > fits:
            raise torch.OutOfMemoryError("out of memory, for this test")

    with model.register_forward_pre_hook(small_device, with_kwargs=True):
        found = predict(model, examples, pad_token=0)
    assert found.dtype == "float32"
    assert found == pytest.approx(expected.numpy(), abs=1e-6)
    assert len(caplog.records) == {1: 4, 4: 2, 64: 0}[fits]


def test_what_does_not_fit_for_one_text_is_out_of_memory(model):
    model = copy.deepcopy(model)

    def no_memory(*_):
        raise torch.OutOfMemoryError("out of memory, for this test")

    with model.register_forward_pre_hook(no_memory), pytest.raises(torch.OutOfMemoryError):
        score(model, "likelihoods")
