"""Models of the shapes that papers use, with random weights, and synthetic tokens. Only speed is measured on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from harness import Evaluation, Example, Metric, ModelKind, Recipe, Task, TaskContext, TaskData


@dataclass(frozen=True)
class Workload:
    """A model shape with a batch shape.

    Attributes:
        name: For tables.
        batch_size: Examples per step and trial.
        length: Tokens per example.
        targets: Layers that get adapters; empty: every linear layer.
        classifies: Whether it is an encoder with a classification head.
        layers: Blocks of the model; 0: as the paper's.
        shortest: Texts have this many tokens to ``length``; 0: all have ``length``.
        labels: How many tokens at the end of a text carry loss; 0: all.
    """

    name: str
    batch_size: int
    length: int
    targets: tuple[str, ...] = ()
    classifies: bool = False
    layers: int = 0
    shortest: int = 0
    labels: int = 0


ROBERTA = Workload("RoBERTa-base 16x128 q+v", 16, 128, ("query", "value"), classifies=True)
LLAMA_58M = Workload("LLaMA-58M 16x128 all linears", 16, 128)
LLAMA_250M = Workload("LLaMA-250M 16x512 all linears", 16, 512)
SMOLLM2 = Workload("SmolLM2-135M 16 texts of 24 to 160", 16, 160, shortest=24, labels=9)
GEMMA3 = Workload("Gemma-3-270M 16 texts of 24 to 160", 16, 160, shortest=24, labels=9)
LLAMA_7B = Workload("LLaMA-7B 4x512 all linears", 4, 512)
NANO = Workload("the shipped base's shape 16x74, the main job", 16, 74)


def build_model(workload: Workload, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Return the model with random weights."""
    from transformers import (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        LlamaConfig,
        LlamaForCausalLM,
        RobertaConfig,
        RobertaForSequenceClassification,
    )

    torch.manual_seed(0)
    if workload.classifies:
        config = RobertaConfig(
            vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, num_labels=2, layer_norm_eps=1e-5,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=1,
        )  # fmt: skip
        return RobertaForSequenceClassification(config).to(device, dtype)
    sizes: dict[str, Any] = {"vocab_size": 32_000, "max_position_embeddings": 1024, "pad_token_id": 0}
    sizes |= SIZES[workload.name]
    if workload.layers:
        sizes["num_hidden_layers"] = workload.layers
    with torch.device(device):  # seven billion random numbers take minutes on a CPU
        if workload.name == GEMMA3.name:
            return Gemma3ForCausalLM(Gemma3TextConfig(**sizes)).to(dtype)
        return LlamaForCausalLM(LlamaConfig(**sizes, dtype=dtype)).to(dtype)


SIZES: Mapping[str, dict[str, Any]] = {
    LLAMA_58M.name: {
        "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8,
    },
    LLAMA_250M.name: {
        "hidden_size": 768, "intermediate_size": 2560, "num_hidden_layers": 24, "num_attention_heads": 16,
    },
    LLAMA_7B.name: {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    },
    NANO.name: {
        "vocab_size": 259, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4,
        "num_attention_heads": 4,
    },
    SMOLLM2.name: {
        "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "tie_word_embeddings": True,
    },
    GEMMA3.name: {
        "vocab_size": 262_144, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
    },
}  # fmt: skip


class SyntheticTask(Task):
    """Random tokens."""

    name = "synthetic"
    main_metric = "none"
    metrics: Mapping[str, Metric] = {"none": Metric("None", "", True, "Nothing is scored.")}
    recipes: Mapping[str, Recipe] = {"smoke": Recipe(steps=1)}

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.model_kind = ModelKind.CLASSIFICATION if workload.classifies else ModelKind.CAUSAL_LM  # type: ignore[misc]
        self.trains = ("classifier",) if workload.classifies else ()  # type: ignore[misc]

    def load(self, context: TaskContext) -> TaskData:
        """Draw tokens."""
        rows = texts(self.workload, 256 if not self.workload.shortest else 4096, context.seed)
        if self.workload.classifies:
            return TaskData([Example(row, row[0] % 2) for row in rows], {"validation": [], "test": []})
        return TaskData([Example(row, labels_of(self.workload, row)) for row in rows], {"validation": [], "test": []})

    def evaluate(self, model: Any, context: TaskContext, split: Any) -> Evaluation:
        """Score nothing."""
        return Evaluation({"none": None}, {"none": "synthetic"})


def texts(workload: Workload, count: int, seed: int) -> list[list[int]]:
    """Return texts of random tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.full((count,), workload.length)
    if workload.shortest:
        lengths = torch.randint(workload.shortest, workload.length + 1, (count,), generator=generator)
    return [torch.randint(5, 255, (length,), generator=generator).tolist() for length in lengths.tolist()]


def labels_of(workload: Workload, row: list[int]) -> list[int]:
    """Return a text's labels."""
    hidden = max(0, len(row) - workload.labels) if workload.labels else 0
    return [-100] * hidden + row[hidden:]


def plain_batches(workload: Workload, device: torch.device, count: int = 8) -> list[dict[str, torch.Tensor]]:
    """Return batches as a plain training loop takes them."""
    rows = texts(workload, count * workload.batch_size, 0)
    batches = []
    for start in range(0, len(rows), workload.batch_size):
        some = rows[start : start + workload.batch_size]
        width = max(len(row) for row in some)
        ids = torch.tensor([row + [0] * (width - len(row)) for row in some], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in some], device=device)
        labels = [labels_of(workload, row) + [-100] * (width - len(row)) for row in some]
        each = {
            "input_ids": ids,
            "labels": ids[:, 0] % 2 if workload.classifies else torch.tensor(labels, device=device),
        }
        batches.append(each | ({"attention_mask": mask} if workload.shortest else {}))
    return batches
