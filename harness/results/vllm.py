"""Whether vLLM would serve an exported adapter, by the rules of its LoRA loader, read from the files.

Source: ``PEFTHelper`` in vllm/lora/peft_helper.py (``_validate_features``, ``validate_legal``) and ``LoRAConfig`` in
vllm/config/lora.py: no DoRA, no biases, no modules that trained whole, ranks up to ``--max-lora-rank``, whose values
are listed below and whose default is 16. Versions that do not read ``rank_pattern`` and ``alpha_pattern`` scale every
layer by ``lora_alpha / r``, so other scales of single layers would be lost without a word.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # values of --max-lora-rank
DEFAULT_RANK = 16
PEFT_CONFIG = "adapter_config.json"


def vllm_verdict(folder: Path) -> str:
    """Return one line on what vLLM would do with the PEFT checkpoint in a folder."""
    config = json.loads((folder / PEFT_CONFIG).read_text(encoding="utf-8"))
    if reasons := _reasons(config):
        return (
            f"vLLM would not serve this adapter: {'; '.join(reasons)}. --format merged writes a model that it serves."
        )
    rank = _largest_rank(config)
    least = next(each for each in RANKS if each >= rank)
    if rank > DEFAULT_RANK:
        return f"vLLM serves this adapter with --enable-lora --max-lora-rank {least}"
    return "vLLM serves this adapter with --enable-lora"


def _reasons(config: Mapping[str, Any]) -> list[str]:
    """Return every reason why vLLM would refuse an adapter, or serve it wrongly."""
    if config["peft_type"] != "LORA":
        return [f"it is no LoRA but {config['peft_type']}"]
    rank = _largest_rank(config)
    found = {
        f"modules trained whole ({', '.join(config.get('modules_to_save') or ())})": config.get("modules_to_save"),
        "DoRA": config.get("use_dora"),
        f"biases ({config.get('bias')})": config.get("bias", "none") != "none" or config.get("lora_bias"),
        f"rank {rank} is above {RANKS[-1]}": rank > RANKS[-1],
        "single layers have scales of their own": not _has_one_scale(config),
    }
    return [reason for reason, holds in found.items() if holds]


def _largest_rank(config: Mapping[str, Any]) -> int:
    return max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])


def _has_one_scale(config: Mapping[str, Any]) -> bool:
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    rank, alpha = config["r"], config["lora_alpha"]
    root = math.sqrt if config.get("use_rslora") else float
    usual = alpha / root(rank)
    scales = [alphas.get(name, alpha) / root(ranks.get(name, rank)) for name in {*ranks, *alphas}]
    return all(math.isclose(each, usual, rel_tol=1e-6) for each in scales)
