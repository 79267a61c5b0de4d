"""What vLLM's LoRA loader accepts and refuses, read from an adapter's files."""

from __future__ import annotations

import json

import pytest

from harness.results.vllm import vllm_verdict

PLAIN = {
    "peft_type": "LORA", "r": 8, "lora_alpha": 8, "bias": "none", "modules_to_save": None, "rank_pattern": {},
    "alpha_pattern": {}, "target_modules": ["model.layers.0.self_attn.q_proj"],
}  # fmt: skip


@pytest.fixture
def verdict(tmp_path):
    def of(**changes):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**PLAIN, **changes}), encoding="utf-8")
        return vllm_verdict(tmp_path)

    return of


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({}, "--enable-lora"),
        ({"r": 16, "lora_alpha": 16}, "--enable-lora"),
        ({"r": 17, "lora_alpha": 17}, "--max-lora-rank 32"),
        ({"r": 300, "lora_alpha": 300}, "--max-lora-rank 320"),
        ({"rank_pattern": {"a": 40}, "alpha_pattern": {"a": 40}}, "--max-lora-rank 64"),
        ({"r": 512, "lora_alpha": 8, "use_rslora": True}, "--max-lora-rank 512"),
    ],
)
def test_what_vllm_serves_says_with_which_option(verdict, changes, option):
    assert verdict(**changes).startswith("vLLM serves this adapter")
    assert verdict(**changes).endswith(option)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "biases (all)"),
        ({"lora_bias": True}, "biases"),
        ({"modules_to_save": ["score"]}, "modules trained whole (score)"),
        ({"r": 513, "lora_alpha": 513}, "rank 513 is above 512"),
        ({"peft_type": "OFT"}, "no LoRA but OFT"),
        ({"rank_pattern": {"a": 16}}, "scales of their own"),
        ({"alpha_pattern": {"a": 16}}, "scales of their own"),
    ],
)
def test_what_vllm_refuses_is_said_with_the_way_out(verdict, changes, reason):
    said = verdict(**changes)
    assert said.startswith("vLLM would not serve this adapter")
    assert reason in said
    assert "--format merged" in said
    assert "\n" not in said
