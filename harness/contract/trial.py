"""A trial: everything that decides the result of one training run, and its identity.

Frozen and JSON-able. Two trials with the same content have the same ``id``, on every machine, so that running a sweep
again trains nothing. What does not decide the result (device, pack, worker) is not here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.contract.method import Method
    from harness.contract.task import Task

FORMAT = 2  # of the trial's JSON; a change gives every trial a new id
OWN = "own"  # the budget of a comparison that matches nothing: every method at the size its own settings give
LATER = (
    "searched",
    "final_parameters",
    "quantize",
    "largest",
)  # left out where they say nothing: trials from before them keep their ids
# In format 1 these settings said 0 for what is now said in a word.
ZERO_MEANT: Mapping[str, str] = {
    **dict.fromkeys(("alpha", "target_r", "niter", "merge_every", "reset_every", "warmup", "restart_warmup"), "auto"),
    "evaluation_rank": "auto",
    **dict.fromkeys(("steps", "micro_batch_size", "warmup_steps", "max_new_tokens"), "auto"),
    **dict.fromkeys(("limit", "questions", "train_rows", "test_rows"), "all"),
}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training run, fully resolved.

    Attributes:
        task: Task name.
        scale: Which of the task's recipes (``smoke``, ``small``, ``paper``).
        recipe: The recipe's fields after overrides.
        model: Hub id, local path or the name of a shipped base model.
        model_revision: Pinned hub revision or content hash of the local weights.
        method: Method name.
        config: The method's settings after solving the budget.
        layer_settings: Settings that differ on single layers, ``{layer: {field: value}}``.
        targets: Name patterns of the adapted layers; empty: all linear layers but the output head.
        budget: As the user wrote it, e.g. ``"lora:r=8"``; empty for a reference method.
        budget_parameters: Trainable adapter parameters asked for; ``None`` for a reference method. Where the budget is
            ``own``, those of the method's own settings.
        adapter_parameters: Trainable adapter parameters reached.
        final_parameters: Those left when training ends, which is what was matched; ``None``: all of them.
        learning_rate: Peak learning rate of the adapter.
        seed: Seeds data order, initialisation and dropout.
        precision: ``float32`` or ``bfloat16``, of the frozen model and the activations.
        purpose: ``report`` (its score is shown) or ``tune`` (it only chooses a learning rate).
        data: Identity of the data: hub id and revision, or content hash.
        plugins: ``{"method": "distribution==version", "task": ...}``.
        searched: Settings of which these were, or are to be, chosen on validation, as the suite wrote them
            (``melora:n=2|4|8``); empty: they were given.
        quantize: How the weights of the frozen linear layers are kept, ``nf4`` or ``nf4-double``; empty: as they are.
        largest: Whether the method cannot be made large enough for the budget: it stands beside what is compared.
        format: Version of this JSON.
    """

    task: str
    scale: str
    recipe: Mapping[str, Any]
    model: str
    model_revision: str
    method: str
    config: Mapping[str, Any]
    layer_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    budget: str
    budget_parameters: int | None
    adapter_parameters: int
    learning_rate: float
    seed: int
    precision: str
    purpose: str = "report"
    data: str = ""
    plugins: Mapping[str, str] = field(default_factory=dict)
    searched: str = ""
    final_parameters: int | None = None
    quantize: str = ""
    largest: bool = False
    format: int = FORMAT

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits that identify this trial's content."""
        return _digest(self._fields())

    @cached_property
    def cell(self) -> str:
        """16 hexadecimal digits that identify what is compared: all but the learning rate, seed and purpose."""
        own = ("learning_rate", "seed", "purpose")
        return _digest({name: value for name, value in self._fields().items() if name not in own})

    @cached_property
    def search(self) -> str:
        """16 hexadecimal digits that identify what one choice on validation is made among."""
        if not self.searched:
            return self.cell
        own = (
            "learning_rate", "seed", "purpose", "config", "layer_settings", "adapter_parameters", "final_parameters",
            "largest",
        )  # fmt: skip
        asked = () if self.is_matched else ("budget_parameters",)
        return _digest({name: value for name, value in self._fields().items() if name not in (*own, *asked)})

    @property
    def is_matched(self) -> bool:
        """Whether the method's size was made to match a budget."""
        return self.budget not in ("", OWN)

    @property
    def matched_parameters(self) -> int:
        """The adapter parameters that are held against the budget: those left when training ends."""
        return self.adapter_parameters if self.final_parameters is None else self.final_parameters

    @property
    def budget_deviation_fraction(self) -> float | None:
        """How far the adapter is from its budget, signed, as a fraction of it; ``None`` where nothing is matched."""
        if self.budget_parameters is None or not self.is_matched:
            return None
        return (self.matched_parameters - self.budget_parameters) / self.budget_parameters

    @property
    def label(self) -> str:
        """Return a name for people, e.g. ``uuid/mora/lr0.001/s0``."""
        return f"{self.task}/{self.method}/lr{self.learning_rate:g}/s{self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """Return the method's settings for people: ``config``, with words where an older format said 0."""
        return self._in_words(self.config)

    @property
    def recipe_settings(self) -> dict[str, Any]:
        """Return the recipe for people: ``recipe``, with words where an older format said 0."""
        return self._in_words(self.recipe)

    def _in_words(self, values: Mapping[str, Any]) -> dict[str, Any]:
        if self.format > 1:
            return dict(values)
        return {name: ZERO_MEANT.get(name, value) if value == 0 else value for name, value in values.items()}

    def build_recipe(self, task: Task) -> Any:
        """Return the task's recipe with this trial's values."""
        recipe: Any = task.recipes[self.scale]
        return dataclasses.replace(recipe, **_with_tuples(self.recipe_settings))

    def build_methods(self, method: type[Method]) -> tuple[Method, dict[str, Method]]:
        """Return the method with this trial's settings, and one for each layer that has settings of its own."""
        config: Any = method.Config(**_with_tuples(self.settings))
        layers = self.layer_settings.items()
        return method(config), {name: method(dataclasses.replace(config, **changes)) for name, changes in layers}

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        result: dict[str, Any] = json.loads(json.dumps(self._fields()))
        return result

    def _fields(self) -> dict[str, Any]:
        names = [name for name in self.__dataclass_fields__ if name not in LATER or getattr(self, name)]
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trial:
        """Rebuild a trial; unknown keys raise ``TypeError``."""
        return cls(**{**data, "targets": tuple(data.get("targets", ()))})


def _digest(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as they were declared: JSON knows no tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
