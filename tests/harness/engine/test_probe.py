"""What a model does with a text is found by running it, and once for models that are alike."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import nn
from transformers import LlamaForCausalLM

from harness.engine import probe


def test_models_that_are_alike_are_run_once(kit, monkeypatch):
    ran, differentiable = [], probe.differentiable
    monkeypatch.setattr(probe, "_reached", {})
    monkeypatch.setattr(probe, "differentiable", lambda model: ran.append(model) or differentiable(model))
    model = kit.language_model()
    with torch.device("meta"):
        empty = LlamaForCausalLM(model.config)
    assert "model.layers.1.mlp.up_proj" in probe.trainable(model)
    assert probe.trainable(empty) == probe.trainable(copy.deepcopy(model).float())
    assert len(ran) == 1

    model.model.layers[0].never_called = nn.Linear(2, 2)
    assert "model.layers.0.never_called" not in probe.trainable(model)
    assert len(ran) == 2
    config = copy.deepcopy(model.config)
    config.hidden_act = "relu"
    probe.trainable(LlamaForCausalLM(config))
    assert len(ran) == 3


SMALL = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}


def test_what_a_classifiers_last_block_does_to_tokens_that_nobody_reads_does_not_count():
    """Longformer's first token sees the whole text, by layers of their own; of the last block only that one is read."""
    config = transformers.LongformerConfig(**SMALL, attention_window=8, max_position_embeddings=80)
    with torch.device("meta"):
        model = transformers.LongformerForSequenceClassification(config)
    found = probe.trainable(model)
    block = "longformer.encoder.layer.{}.attention.self.{}"
    assert [block.format(number, "query") in found for number in (0, 1)] == [True, False]
    assert [block.format(number, "query_global") in found for number in (0, 1)] == [True, True]


@pytest.mark.parametrize("end", [None, 2, [2, 3]])
def test_every_layer_counts_of_a_classifier_whose_end_of_a_text_is_not_known(end):
    """A text of one token only would give attention no choice, and query and key no gradient."""
    config = transformers.LlamaConfig(**SMALL, eos_token_id=end, pad_token_id=0)
    with torch.device("meta"):
        model = transformers.LlamaForSequenceClassification(config)
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert linear <= probe.trainable(model)


def test_a_layer_that_sees_some_tokens_only_counts_though_none_of_them_is_read():
    """An expert's: another text may be sent to it."""

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            return torch.cat([self.first(x[:, :-1]), self.last(x[:, -1:])], 1)

    torch.manual_seed(0)
    model = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**SMALL, pad_token_id=0)).eval()
    model.model.layers[1].mlp = Experts()
    assert "model.layers.1.mlp.first" not in probe.idle(model)


def test_every_part_of_a_model_is_told_what_fills_texts():
    """A classifier within a model that also takes images asks its text's part."""
    config = transformers.Gemma3Config(
        text_config={**SMALL, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": None, "sliding_window": 16},
        vision_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    )
    model = transformers.Gemma3ForSequenceClassification(config).eval()
    probe.name_padding(model.config, 7)
    text, padded = torch.tensor([[8, 9, 10]]), torch.tensor([[8, 9, 10, 7, 7], [8, 9, 10, 11, 12]])
    with torch.no_grad():
        alone = model(input_ids=text, attention_mask=torch.ones_like(text)).logits
        found = model(input_ids=padded, attention_mask=padded.ne(7).long()).logits
    assert found[0].tolist() == pytest.approx(alone[0].tolist(), abs=1e-5)
