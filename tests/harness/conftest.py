"""A small, complete record that tests change as they need, and small language models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from harness.bases import resolve
from harness.contract.record import Record, State
from harness.contract.trial import Trial


def make_trial(**changes: Any) -> Trial:
    fields: dict[str, Any] = {
        "task": "toy",
        "scale": "smoke",
        "recipe": {"steps": 20, "batch_size": 4},
        "model": "nano",
        "model_revision": "abc123",
        "method": "lora",
        "config": {"r": 8, "alpha": 16.0},
        "layer_settings": {"layers.0.q": {"r": 7}},
        "targets": ("q", "v"),
        "budget": "lora:r=8",
        "budget_parameters": 1000,
        "adapter_parameters": 998,
        "learning_rate": 1e-3,
        "seed": 0,
        "precision": "float32",
        "data": "sha256:d00d",
        "plugins": {"method": "peft-harness==0.1.0"},
    }
    return Trial(**{**fields, **changes})


def make_record(trial: Trial | None = None, **changes: Any) -> Record:
    fields: dict[str, Any] = {
        "trial": trial or make_trial(),
        "state": State.COMPLETE,
        "metrics": {"accuracy": 0.75, "perplexity": None},
        "reasons": {"perplexity": "the task has no text to score"},
        "history": [
            {"step": 10, "metrics": {"train/loss": 2.5}},
            {"step": 20, "metrics": {"train/loss": 1.5, "accuracy": 0.75}},
        ],
        "items": {"accuracy": [1.0, 1.0, 0.0, 1.0]},
        "main_metric": "accuracy",
        "higher_is_better": True,
        "metric_details": {
            "accuracy": {
                "title": "Accuracy",
                "unit": "fraction",
                "higher_is_better": True,
                "help": "Exact matches.",
            }
        },
        "counts": {"adapter_parameters": 998, "task_parameters": 0, "base_parameters": 50_000},
        "cost": {"train_seconds": 12.5, "peak_memory_bytes": 2**20, "step_seconds_solo": None, "steps": 20},
        "environment": {"sweep": "main", "results_root": "/nowhere", "git_commit": "f00", "torch": "2.13"},
        "error": None,
        "started_at": "2026-01-02T03:04:05+00:00",
        "finished_at": "2026-01-02T03:04:25+00:00",
    }
    return Record(**{**fields, **changes})


@pytest.fixture(name="make_trial", scope="session")
def trial_factory() -> Callable[..., Trial]:
    return make_trial


@pytest.fixture(name="make_record", scope="session")
def record_factory() -> Callable[..., Record]:
    return make_record


@pytest.fixture(params=["llama", "gpt2"], scope="module")
def model(request):
    """Return a small language model with random weights, for the shipped base's tokenizer."""
    torch.manual_seed(0)
    words = len(AutoTokenizer.from_pretrained(resolve("nano")))
    if request.param == "llama":
        config = LlamaConfig(
            vocab_size=words, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, initializer_range=0.3,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval()
    return GPT2LMHeadModel(GPT2Config(vocab_size=words, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)).eval()


@pytest.fixture(params=["cuda:0", "cuda:1"])
def gpu(request) -> str:
    """Return one of two GPUs. Whatever does not say which it means, means the first."""
    if int(request.param[-1]) >= torch.cuda.device_count():
        pytest.skip(f"there is no {request.param}")
    return request.param
