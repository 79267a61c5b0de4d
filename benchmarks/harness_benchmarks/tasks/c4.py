"""C4 pretraining from scratch: frozen random linear layers with adapters; norms, embeddings and head train whole.

LLaMA shapes from 9M to 1.3B parameters, packed sequences, no full-rank warm-up for any method. Methods that merge and
restart (ReLoRA, ReMoRA) bring their own period and jagged schedule. Reported are the perplexity on C4's validation
split and how many singular values of the weight change exceed 0.1, per kind of projection.

``c4`` takes the size that suits its scale; ``c4/9m`` ... ``c4/1.3b`` fix it, whatever the scale.

Source: Jiang et al., "MoRA", arXiv:2405.12130, section 5.3, table 3 and figure 5; shapes as in Lialin et al., "ReLoRA",
arXiv:2307.05695.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch

from harness import (
    ConfigError,
    Evaluation,
    Metric,
    ModelKind,
    Purpose,
    Recipe,
    Source,
    Table,
    Task,
    TaskContext,
    TaskData,
    delta_weights,
    hookimpl,
    negative_log_likelihoods,
    pseudo_values,
    setting,
)
from harness_benchmarks import REVISION
from harness_benchmarks.corpus import (
    BUFFER,
    Corpus,
    Documents,
    WindowCache,
    Windows,
    documents_of,
    perplexity,
    validation_windows,
)


class Shape(NamedTuple):
    """Of a LLaMA model. The published names count the embeddings of a vocabulary of 32,100 tokens."""

    hidden: int
    intermediate: int
    layers: int
    heads: int


SHAPES: Mapping[str, Shape] = {
    "9m": Shape(128, 352, 4, 4),
    "35m": Shape(384, 1024, 6, 8),
    "60m": Shape(512, 1376, 8, 8),
    "130m": Shape(768, 2048, 12, 12),
    "250m": Shape(768, 2560, 24, 16),
    "1.3b": Shape(2048, 5461, 24, 32),
}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LARGE = 0.1  # singular values above this are counted (figure 5)

CORPUS = Corpus(
    Source(
        hub_id="allenai/c4",
        config="en",
        revision="1588ec454efa1a09f29cd18ddd04fe05fc8653a2",
        licence="ODC-BY; the pages keep their own rights",
        folder="text/c4",
        note="Scored on C4's validation split; choices are made on one training document in a hundred, held out. "
        + REVISION,
    ),
    {
        "train": ("en/c4-train.{:05d}-of-01024.json.gz", 1024),
        "validation": ("en/c4-validation.{:05d}-of-00008.json.gz", 8),
    },
)


@dataclass(frozen=True, kw_only=True)
class C4Recipe(Recipe):
    """A recipe with the model's size and the text."""

    size: str = setting("9m", "LLaMA shape", choices=tuple(SHAPES))
    tokenizer: str = setting("nano", "whose tokens: a hub name, a folder or a shipped base (ReLoRA: google-t5/t5-base)")
    vocabulary: int = setting(259, "tokens of that tokenizer: rows of the embedding and of the head", minimum=1)
    validation_windows: int = setting(64, "most sequences to score, of max_length tokens each", minimum=1)
    folders: tuple[str, ...] = (CORPUS.source.folder,)  # of the training text below --data-dir
    shuffle_buffer: int = setting(BUFFER, "documents among which the next one is drawn", minimum=1)


class C4Task(Task):
    """Pretrain on C4 with frozen random linear layers."""

    name = "c4"
    title = "C4 pretraining"
    paper = "https://arxiv.org/abs/2405.12130"
    source = CORPUS.source
    main_metric = "perplexity"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "perplexity": Metric(
            "Perplexity",
            "perplexity",
            False,
            "On C4's validation split, per token; compare within one tokenizer (table 3).",
        ),
        "loss": Metric("Loss", "nats", False, "Its logarithm: mean negative log-likelihood of a token."),
        "large_singular_values": Metric(
            "Singular values > 0.1", "count", True, "Of the weight change, mean over all adapted layers (figure 5)."
        ),
        **{
            f"large_singular_values_{name}": Metric(
                f"Singular values > 0.1, {name}",
                "count",
                True,
                f"Of the weight change, mean over layers' {name} (figure 5).",
            )
            for name in PROJECTIONS
        },
    }
    model_kind = ModelKind.FROM_SCRATCH
    purpose = Purpose.PRETRAINING
    trains = ("embed_tokens", "*norm", "lm_head")
    size: ClassVar[str] = ""  # the only size of a subclass; empty: the recipe's
    recipes: ClassVar[Mapping[str, C4Recipe]] = {
        "smoke": C4Recipe(
            size="9m", max_length=128, batch_size=8, steps=80, learning_rate=5e-3, schedule="cosine", warmup_steps=8,
            validation_windows=32, evaluate_at=(40,),
        ),
        "small": C4Recipe(
            size="35m", max_length=512, batch_size=64, steps=1_000, learning_rate=1e-3, schedule="cosine",
            warmup_steps=100, validation_windows=64, evaluate_at=(250, 500, 750),
        ),
        # Section 5.3: r = 128, 10,000 steps of 1,024 sequences of 512 tokens, cosine, 1,000 steps of warm-up.
        "paper": C4Recipe(
            size="250m", max_length=512, batch_size=1_024, micro_batch_size=64, steps=10_000, learning_rate=5e-4,
            schedule="cosine", warmup_steps=1_000, tokenizer="google-t5/t5-base", vocabulary=32_100,
            validation_windows=4_000, evaluate_at=(1_000, 2_000, 4_000, 6_000, 8_000),
        ),
    }  # fmt: skip

    def tables(self, recipe: Any) -> Sequence[Table]:
        """Return the corpus: its training text may come from other local folders."""
        train = [Table(replace(CORPUS.source, folder=folder), "train") for folder in recipe.folders]
        # Of C4's own training documents a part is held out, to make choices on.
        own = [] if CORPUS.source.folder in recipe.folders else [Table(CORPUS.source, "train")]
        return [*train, *own, Table(CORPUS.source, "validation")]

    def tokenizer_name(self, recipe: Any) -> str:
        """Return whose tokenizer a model of this recipe uses."""
        return str(recipe.tokenizer)

    def model_config(self, recipe: Any) -> Any:
        """Return a LLaMA configuration: RMSNorm, SwiGLU, rotary positions, no bias, head apart from the embedding."""
        from transformers import LlamaConfig

        if self.size and recipe.size != self.size:
            raise ConfigError(f"task {self.name!r} has size {self.size!r}, not {recipe.size!r}; take task 'c4'")
        shape = SHAPES[recipe.size]
        return LlamaConfig(
            vocab_size=recipe.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.heads,
            hidden_act="silu", rms_norm_eps=1e-6, initializer_range=0.02, tie_word_embeddings=False,
            max_position_embeddings=max(1_024, recipe.max_length), bos_token_id=None, eos_token_id=None,
        )  # fmt: skip

    def load(self, context: TaskContext) -> TaskData:
        """Open the shuffled training stream, and tokenise what is scored."""
        recipe, tokenizer, data_dir = context.recipe, context.tokenizer, context.data_dir
        if len(tokenizer) != recipe.vocabulary:
            raise ConfigError(
                f"recipe: vocabulary={recipe.vocabulary}, but the tokenizer {tokenizer.name_or_path!r} has "
                f"{len(tokenizer)} tokens; set tokenizer and vocabulary together"
            )
        files = CORPUS.files("train", data_dir, recipe.folders)
        documents = Documents(files, context.seed, recipe.shuffle_buffer)
        held_out = validation_windows(
            CORPUS.files("train", data_dir), tokenizer, recipe.max_length, recipe.validation_windows, held_out=True
        )
        scored = validation_windows(
            CORPUS.files("validation", data_dir), tokenizer, recipe.max_length, recipe.validation_windows
        )
        return TaskData(
            train=WindowCache(Windows(documents, tokenizer, recipe.max_length), recipe.max_length),
            splits={"validation": held_out, "test": scored},
        )

    @classmethod
    def recompute(cls, items: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
        """Return the perplexity of the windows' losses."""
        losses = [each for each in items.get("loss", ()) if each is not None]
        return {"perplexity": math.exp(sum(losses) / len(losses))} if losses else {}

    def evaluate(self, model: Any, context: TaskContext, split: Any) -> Evaluation:
        """Return the perplexity, and the large singular values of what the adapters learned."""
        size = context.recipe.rows_at_once
        sums = negative_log_likelihoods(model, split, context.tokenizer.pad_token_id, size)
        losses = [total / (len(window.labels) - 1) for total, window in zip(sums, split, strict=True)]
        loss = sum(losses) / len(losses)  # windows are equally long
        counts = {name: count_large(delta) for name, delta in delta_weights(model).items()}
        metrics: dict[str, float | None] = {"perplexity": math.exp(loss), "loss": loss}
        metrics["large_singular_values"] = _mean(list(counts.values()))
        for projection in PROJECTIONS:
            of_kind = [count for name, count in counts.items() if name.endswith(f".{projection}")]
            metrics[f"large_singular_values_{projection}"] = _mean(of_kind)
        missing = "no adapter on such a layer, so its weight change is not known apart from the weight"
        return Evaluation(
            metrics=metrics,
            reasons={name: missing for name, value in metrics.items() if value is None},
            items={"loss": losses, "perplexity": pseudo_values(perplexity, losses)},
            item_groups=dict.fromkeys(("loss", "perplexity"), documents_of(split, context.tokenizer.eos_token_id)),
        )


def count_large(delta: torch.Tensor) -> int:
    """Return how many singular values of a matrix (O, I) exceed ``LARGE``, from its Gram matrix in double precision."""
    wide = delta.double() if delta.shape[0] <= delta.shape[1] else delta.double().T
    return int((torch.linalg.eigvalsh(wide @ wide.T) > LARGE**2).sum())


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def at_size(size: str) -> type[C4Task]:
    """Return the task whose model has this size at every scale."""
    recipes = {scale: replace(recipe, size=size) for scale, recipe in C4Task.recipes.items()}
    if size != C4Task.recipes["smoke"].size:  # a large model learns nothing in seconds: smoke shows that it runs
        recipes["smoke"] = replace(
            recipes["smoke"], steps=8, batch_size=2, max_length=64, warmup_steps=1, validation_windows=4, evaluate_at=()
        )
    title = f"C4 pretraining, {size.upper()}"
    return type(f"C4Task_{size}", (C4Task,), {"name": f"c4/{size}", "title": title, "size": size, "recipes": recipes})


@hookimpl
def harness_register_tasks() -> list[type[Task]]:
    """Register ``c4`` and the task of every size."""
    return [C4Task, *map(at_size, SHAPES)]
