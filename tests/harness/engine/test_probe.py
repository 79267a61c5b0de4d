"""What a model does with a text is found by running it, and once for models that are alike."""

from __future__ import annotations

import copy

import torch
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
