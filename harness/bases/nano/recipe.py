"""The recipe of ``nano``: architecture, mixture, optimiser. Numbers only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PAD, BOS, EOS = 256, 257, 258
SPECIAL_TOKENS = {PAD: "<|pad|>", BOS: "<|bos|>", EOS: "<|eos|>"}

# Layer sizes are divisible by 2, 4, 8, 16, 32, 64 and 128, so that block-diagonal methods fit every layer.
ARCHITECTURE: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 259,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.05,  # half of 1/sqrt(hidden); the usual 0.02 is for wide models
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}

STEPS = 10_000
ROWS = {"source": 38, "documentation": 13, "uuid": 13}  # rows of one step, by what they are cut from
TOKENS = 512  # length of a row
LEARNING_RATE = 3e-3
WARMUP_STEPS = 300
WEIGHT_DECAY = 0.1
BETAS = (0.9, 0.95)
GRADIENT_NORM = 1.0

LICENCE = (
    "The weights are under Apache-2.0, like the rest of the package. They were trained on the source and "
    "documentation of Python's standard library (PSF License Agreement) and on random strings; the package "
    "ships none of that text."
)


def described(seed: int, steps: int) -> dict[str, Any]:
    """Return everything that decides the weights besides the text, for the provenance file."""
    return {
        "seed": seed,
        "steps": steps,
        "rows_per_step": ROWS,
        "tokens_per_row": TOKENS,
        "optimizer": "AdamW",
        "betas": BETAS,
        "learning_rate": LEARNING_RATE,
        "schedule": "linear warm-up, cosine to zero",
        "warmup_steps": WARMUP_STEPS,
        "weight_decay": WEIGHT_DECAY,
        "gradient_norm": GRADIENT_NORM,
        "precision": "bfloat16 autocast on a GPU, float32 on a CPU; float32 weights",
    }
