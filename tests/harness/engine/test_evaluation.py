"""Scoring against the plain way: one example at a time, no padding, no tricks."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from harness.bases import resolve
from harness.contract.task import IGNORE, Example
from harness.engine.evaluation import negative_log_likelihoods

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
