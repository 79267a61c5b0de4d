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
    """

    name: str
    batch_size: int
    length: int
    targets: tuple[str, ...] = ()
    classifies: bool = False
    layers: int = 0


ROBERTA = Workload("RoBERTa-base 16x128 q+v", 16, 128, ("query", "value"), classifies=True)
LLAMA_58M = Workload("LLaMA-58M 16x128 all linears", 16, 128)
LLAMA_250M = Workload("LLaMA-250M 16x512 all linears", 16, 512)
NANO = Workload("the shipped base's shape 16x74, the main job", 16, 74)


def build_model(workload: Workload, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Return the model with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaForSequenceClassification

    torch.manual_seed(0)
    if workload.classifies:
        config = RobertaConfig(
            vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, num_labels=2, layer_norm_eps=1e-5,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=1,
        )  # fmt: skip
        return RobertaForSequenceClassification(config).to(device, dtype)
    sizes = {
        LLAMA_58M: {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8},
        LLAMA_250M: {"hidden_size": 768, "intermediate_size": 2560, "num_hidden_layers": 24, "num_attention_heads": 16},
        NANO: {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4},
    }[next(each for each in (LLAMA_58M, LLAMA_250M, NANO) if each.name == workload.name)]
    if workload.layers:
        sizes["num_hidden_layers"] = workload.layers
    vocabulary = 259 if workload.name == NANO.name else 32000
    config = LlamaConfig(vocab_size=vocabulary, max_position_embeddings=1024, pad_token_id=0, **sizes)
    return LlamaForCausalLM(config).to(device, dtype)


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
        generator = torch.Generator().manual_seed(context.seed)
        ids = torch.randint(5, 255, (256, self.workload.length), generator=generator).tolist()
        examples = [Example(row, row[0] % 2 if self.workload.classifies else row) for row in ids]
        return TaskData(examples, {"validation": [], "test": []})

    def evaluate(self, model: Any, context: TaskContext, split: Any) -> Evaluation:
        """Score nothing."""
        return Evaluation({"none": None}, {"none": "synthetic"})


def plain_batches(workload: Workload, device: torch.device, count: int = 8) -> list[dict[str, torch.Tensor]]:
    """Return batches as a plain training loop takes them."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(count):
        ids = torch.randint(5, 255, (workload.batch_size, workload.length), generator=generator).to(device)
        batches.append({"input_ids": ids, "labels": ids[:, 0] % 2 if workload.classifies else ids})
    return batches
