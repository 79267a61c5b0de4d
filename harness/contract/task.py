"""The contract of a task: data, a training recipe per scale, and metrics.

A task turns rows into training examples for a tokenizer and scores a trained model. It knows nothing about methods,
budgets or learning-rate grids. Tasks are versioned, never edited: one whose numbers would move gets a new name.

What is not here: the training loop (``engine.training``), collating examples into batches (``engine.batch``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from harness.contract.method import Purpose
from harness.contract.setting import check_settings, setting
from harness.errors import ConfigError, HarnessError


class ModelKind(StrEnum):
    """Which head the base model gets, and what an example's ``labels`` mean."""

    CAUSAL_LM = "causal_lm"  # labels: one token id per input token, IGNORE where there is no loss
    CLASSIFICATION = "classification"  # labels: one class index
    REGRESSION = "regression"  # labels: one float
    FROM_SCRATCH = "from_scratch"  # as CAUSAL_LM, with random weights of ``Task.model_config``


IGNORE = -100  # label of a token that carries no loss
BEST, BEST_LOSS = "best", "best-loss"  # a recipe's ``checkpoint``: by the main metric, by the loss of validation rows


class Example(NamedTuple):
    """One training example.

    Attributes:
        input_ids: Token ids.
        labels: See ``ModelKind``. For language models ``labels[t]`` is the token to be predicted *at* position t
            (the harness shifts): usually ``input_ids`` with the prompt replaced by ``IGNORE``.
        token_type_ids: Which of a pair of texts each token is of, for encoders that were pretrained with it. All
            examples of a task have it or none has.
    """

    input_ids: Sequence[int]
    labels: Sequence[int] | int | float
    token_type_ids: Sequence[int] | None = None


@dataclass(frozen=True)
class Source:
    """Where a task's data comes from.

    Attributes:
        hub_id: Data set on the Hugging Face hub; empty for generated data.
        config: Its configuration name.
        revision: Pinned commit.
        licence: Licence of the data, or "generated".
        folder: The same tables below ``--data-dir``.
        note: What a reader must know, e.g. which split stands for a hidden test set.
    """

    hub_id: str = ""
    config: str = ""
    revision: str = ""
    licence: str = "generated"
    folder: str = ""
    note: str = ""

    @property
    def is_generated(self) -> bool:
        """Return whether the data is made and not read."""
        return not self.hub_id and not self.folder


class Table(NamedTuple):
    """One table that a task reads.

    Attributes:
        source: Where it is.
        split: Name of the local file, and of the hub's split unless ``hub_split`` is given.
        needed: Whether nothing can be trained or scored without it. Otherwise a metric is ``None`` with a reason.
        hub_split: The hub's name of the split.
    """

    source: Source
    split: str
    needed: bool = True
    hub_split: str = ""


@dataclass(frozen=True)
class Metric:
    """How to read one metric.

    Attributes:
        title: For a column head.
        unit: ``"fraction"``, ``"nats"``, ``"bits/parameter"``, ``"perplexity"``, ...
        higher_is_better: Direction.
        help: One sentence: what it is over, and its source.
    """

    title: str
    unit: str
    higher_is_better: bool
    help: str


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a task trains at one scale. Tasks subclass it to add sizes of their own; ``--set`` sets any field."""

    steps: int | Literal["auto"] = setting(
        "auto", "optimizer updates; auto: as many as epochs make", kind=int, formerly=0, minimum=1
    )
    epochs: float = setting(0.0, "passes over the training data, where steps is auto", minimum=0)
    batch_size: int = setting(16, "examples per optimizer update", minimum=1)
    micro_batch_size: int | Literal["auto"] = setting(
        "auto", "examples per forward pass; auto: the whole batch", kind=int, formerly=0, minimum=1
    )
    max_length: int = setting(512, "tokens; longer examples are cut", minimum=1)
    learning_rate: float = setting(3e-4, "peak learning rate of a LoRA-like method", minimum=0)
    schedule: str = setting("linear", "decay after warm-up", choices=("constant", "linear", "cosine"))
    warmup_steps: int | Literal["auto"] = setting(
        "auto", "updates of linear warm-up; auto: warmup_fraction of all", kind=int, minimum=0
    )
    warmup_fraction: float = setting(
        0.0, "warm-up as a fraction of all updates, where warmup_steps is auto", minimum=0, maximum=1
    )
    weight_decay: float = setting(0.0, "AdamW's decoupled weight decay", minimum=0)
    beta1: float = setting(0.9, "AdamW's first moment decay", minimum=0, maximum=1)
    beta2: float = setting(0.999, "AdamW's second moment decay", minimum=0, maximum=1)
    epsilon: float = setting(1e-8, "AdamW's epsilon", minimum=0)
    clip_norm: float = setting(1.0, "each trial's gradient norm is clipped to this; 0: off", minimum=0)
    evaluate_at: tuple[int, ...] = ()  # updates after which validation is scored, besides the last
    checkpoint: str = setting(
        "last", "whose weights are scored and kept: the last update's, those of the best main metric on validation, or "
        "those of the lowest training loss on its rows", choices=("last", BEST, BEST_LOSS),
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Check every field."""
        check_settings(self)
        if strange := [step for step in self.evaluate_at if step < 1]:
            raise ConfigError(f"{type(self).__qualname__}: evaluate_at={strange[0]} is no update; the first is 1")
        if self.warmup_steps == 0 and self.warmup_fraction:
            raise ConfigError(
                f"{type(self).__qualname__}: warmup_steps=0 and warmup_fraction={self.warmup_fraction:g} say two "
                "things; give warmup_steps=auto for the fraction, or warmup_fraction=0 for no warm-up"
            )

    @property
    def rows_at_once(self) -> int:
        """Examples per forward pass."""
        return self.batch_size if self.micro_batch_size == "auto" else self.micro_batch_size

    def warmup(self, total_steps: int) -> int:
        """Return the updates of linear warm-up in a run of this many updates."""
        return round(self.warmup_fraction * total_steps) if self.warmup_steps == "auto" else self.warmup_steps

    def resolve(self, total_steps: int) -> dict[str, int]:
        """Return what the fields became that leave their value to the harness, in a run of this many updates."""
        values = {"steps": total_steps, "micro_batch_size": self.batch_size, "warmup_steps": self.warmup(total_steps)}
        return {name: value for name, value in values.items() if getattr(self, name) == "auto"}


@dataclass(frozen=True, kw_only=True)
class TaskContext:
    """What a task may use to make data and to evaluate.

    Attributes:
        tokenizer: Of the base model, from ``transformers``.
        recipe: The task's own recipe type.
        seed: The trial's.
        data_dir: Local tables (``--data-dir`` or ``HARNESS_DATA_DIR``), or ``None`` to use the hub.
        adapter_parameters: The trial's trainable adapter parameters.
        allow_code_execution: Whether model-written code may run.
        base_model: The resident base model; inside ``with harness.pretrained(model)`` it is the model before tuning.
    """

    tokenizer: Any
    recipe: Any
    seed: int
    data_dir: Path | None = None
    adapter_parameters: int = 0
    allow_code_execution: bool = False
    base_model: Any = None


@dataclass(frozen=True)
class TaskData:
    """A task's data, tokenised.

    Attributes:
        train: A sequence, which the harness shuffles per trial and epoch, or a plain iterable, which it reads in order.
        splits: ``{"validation": ..., "test": ...}``, in whatever form the task's ``evaluate`` wants.
        rows: The harness's cache of training examples as arrays.
    """

    train: Sequence[Example] | Iterable[Example]
    splits: Mapping[str, Any]
    rows: dict[int, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Evaluation:
    """What ``Task.evaluate`` found.

    Attributes:
        metrics: Every metric the task declares; ``None`` where it cannot be had.
        reasons: For each ``None``, why.
        items: Per-item scores, in the data's order, so that two runs can be paired. Their mean is the metric; of one
            that is no mean of items, give ``pseudo_values``.
        notes: What else a reader of the record must know of how it was scored; kept as ``scoring`` in its environment.
        item_groups: By metric, for each item a number: items with the same one belong together (windows of one
            document, questions about one passage), and count as one draw. Left out where every item is its own.
        chance: By metric, what a model that does not look at its input scores on these items: by always giving the
            commonest answer, or one of k at random (1 / k). Left out where that means nothing, as of a loss.
    """

    metrics: Mapping[str, float | None]
    reasons: Mapping[str, str] = field(default_factory=dict)
    items: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    item_groups: Mapping[str, Sequence[int]] = field(default_factory=dict)
    chance: Mapping[str, float] = field(default_factory=dict)

    def metrics_present(self) -> dict[str, float]:
        """Return the metrics that have a value."""
        return {name: value for name, value in self.metrics.items() if value is not None}


def check_evaluation(task: Task, found: Any) -> Evaluation:
    """Return what ``task.evaluate`` found, in plain numbers.

    Raises:
        HarnessError: It is no ``Evaluation``, a declared metric is missing or another one is there, a value is no
            number, there is none and no reason, groups are not those of its items, or chance is not a metric's.
    """
    where = f"task {task.name!r}: evaluate()"
    if not isinstance(found, Evaluation):
        raise HarnessError(f"{where} returned {type(found).__name__}; return harness.Evaluation(metrics={{...}})")
    for name in (*task.metrics, *found.metrics):
        if name not in found.metrics:
            raise HarnessError(f"{where} returned no metric {name!r}; give its value, or None and a reason")
        if name not in task.metrics:
            raise HarnessError(f"{where} returned a metric {name!r}; the task declares {', '.join(task.metrics)}")
        if found.metrics[name] is None and not found.reasons.get(name):
            raise HarnessError(f"{where}: metric {name!r} is None; say why in reasons[{name!r}]")

    def number(value: Any, name: str) -> float | None:
        try:
            return None if value is None else float(value)
        except (TypeError, ValueError) as error:
            raise HarnessError(f"{where}: {name} has {value!r}, which is not a number") from error

    for name, told in found.chance.items():
        if name not in task.metrics:
            raise HarnessError(f"{where} gives chance of {name!r}; the task declares {', '.join(task.metrics)}")
        level = number(told, f"chance[{name!r}]")
        if level is None or not math.isfinite(level):
            raise HarnessError(f"{where}: chance[{name!r}] is {told!r}; give a finite number, or leave the metric out")
    for name, groups in found.item_groups.items():
        if len(groups) != len(found.items.get(name, ())):
            raise HarnessError(
                f"{where}: item_groups[{name!r}] has {len(groups)} entries for {len(found.items.get(name, ()))} items; "
                "give one for each item"
            )
    return Evaluation(
        {name: number(value, f"metrics[{name!r}]") for name, value in found.metrics.items()},
        {name: str(reason) for name, reason in found.reasons.items()},
        {name: [number(each, f"items[{name!r}]") for each in values] for name, values in found.items.items()},
        {str(name): str(note) for name, note in found.notes.items()},
        {name: [int(each) for each in groups] for name, groups in found.item_groups.items()},
        {name: float(level) for name, level in found.chance.items()},
    )


class Task:
    """A task. Subclass it and register it with ``harness_register_tasks``.

    Class attributes:
        name: Lower-case slug, with ``/`` for families, e.g. ``"glue/rte"``.
        title: For people.
        source: Its note says what a reader must know about the data. Where the data is from, and under which licence,
            is said by the sources of ``tables``, and by this one where there are none.
        main_metric: The metric that ranks; a key of ``metrics``.
        metrics: How to read each.
        model_kind: See ``ModelKind``.
        recipes: One per scale.
        targets: Name patterns of the layers to adapt; empty: every linear layer but the output head.
        trains: Name patterns of modules that train besides the adapters, the same for every method.
        model: The base model used when the user names none.
        purpose: What it trains for: fine-tuning unless it says otherwise. Methods may choose settings by it.
        seeded_data: Whether ``load`` draws from the seed. If not, trials of every seed share what it returns.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    source: ClassVar[Source] = Source()
    main_metric: ClassVar[str]
    metrics: ClassVar[Mapping[str, Metric]]
    model_kind: ClassVar[ModelKind] = ModelKind.CAUSAL_LM
    recipes: ClassVar[Mapping[str, Recipe]]
    targets: ClassVar[tuple[str, ...]] = ()
    trains: ClassVar[tuple[str, ...]] = ()
    model: ClassVar[str] = "nano"
    purpose: ClassVar[Purpose] = Purpose.FINE_TUNING
    seeded_data: ClassVar[bool] = True

    def tables(self, recipe: Any) -> Sequence[Table]:
        """Return every table that a recipe reads; none where the data is generated."""
        return ()

    def load(self, context: TaskContext) -> TaskData:
        """Read and tokenise the data."""
        raise NotImplementedError

    def check(self, context: TaskContext) -> None:
        """Refuse data that is not what the task declares. Planning asks, so that nothing trains before.

        Args:
            context: As for ``load``, with seed 0; its ``base_model`` has shapes and a config, and no weights.

        Raises:
            DataError: naming file, row and value. The default looks at nothing.
        """

    def evaluate(self, model: Any, context: TaskContext, split: Any) -> Evaluation:
        """Score a model on one split (a value of ``TaskData.splits``).

        Args:
            model: The ``transformers`` model with one trial's adapters active, in evaluation mode, without gradients.
            context: As given to ``load``.
            split: What to score.
        """
        raise NotImplementedError

    def validation_examples(self, split: Any) -> Sequence[Example]:
        """Return a validation split's rows as training examples, for ``checkpoint=best-loss``, which needs them.

        Args:
            split: The value of ``TaskData.splits["validation"]``.
        """
        raise NotImplementedError

    @classmethod
    def recompute(cls, items: Mapping[str, Sequence[float | None]]) -> Mapping[str, float]:
        """Return metrics that follow from per-item scores by a formula of the task's own, e.g. perplexity from losses.

        ``harness verify`` holds a record against it. Metrics that are the mean of their items need none.

        Args:
            items: As in ``Evaluation.items``; of one evaluation, so that some may be missing.
        """
        return {}

    def model_arguments(self, recipe: Any) -> Mapping[str, Any]:
        """Return keyword arguments for loading the model, e.g. ``num_labels`` of a classification head."""
        return {}

    def tokenizer_name(self, recipe: Any) -> str:
        """Return the tokenizer of a ``FROM_SCRATCH`` task: a shipped base, hub id or local folder."""
        return self.model

    def model_config(self, recipe: Any) -> Any:
        """Return the ``transformers`` config of a ``FROM_SCRATCH`` task's model."""
        raise NotImplementedError
