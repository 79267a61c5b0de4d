"""A lane: one trial's trainable state, wherever it trains, and what became of it.

    rows       what it trains on, update by update, in its own order
    trained    what it trains
    state      the same as tensors, for saving

What is not here: how a lane is made (``build``), lanes' steps (``pack``), the loop over them (``training``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice, repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from harness.contract.dropout import Dropout
from harness.contract.method import Method
from harness.contract.task import Evaluation, TaskContext, TaskData
from harness.contract.trial import Trial
from harness.engine.attached import is_as_before
from harness.engine.batch import Batch, Row, collate, draw
from harness.engine.forms import Forms
from harness.engine.resident import Base


class Best(NamedTuple):
    """A lane at the best of its evaluations: after which update, its score on validation, what was trained."""

    step: int
    score: float
    state: Mapping[str, Tensor]


@dataclass(kw_only=True, eq=False)
class Lane:
    """One trial's trainable state, made by ``build_lane``.

    Attributes:
        base: The resident model.
        trial: What is run.
        method: Built from the trial's config.
        context: For the task.
        data: The task's data, tokenised.
        generator: Whatever the method draws comes from it.
        adapters: By the name of the layer they sit on.
        modules: Copies of the modules that train whole, by name.
        private: The model of a method that does not live on linear layers.
        masters: What trains there, by name, in at least float32.
        of_task: The names of those that the task trains besides the method.
        optimizer: Of all the above.
        rates: Peak learning rate of each of the optimizer's groups.
        multipliers: Of the peak rates, for every update; as many as there are updates.
        done: Updates so far.
        history: Of losses and metrics, as in the record.
        evaluation: The final one.
        error: Why it stopped early.
        initialise_seconds: What the method's part of making it took: adapters, decompositions, calibration.
        prepare_seconds: What making it took; likewise its training and its evaluations.
        train_tokens: Trained on so far.
        padded_tokens: The same, with what batches were filled up with.
        forms: How many forms its batches had, at most in one pack; 0: each has its own.
        pack_lanes: Most lanes that trained with it at once, itself included.
        compiled: Whether it trained in a compiled model.
        rows_at_once: Examples per forward pass: the recipe's, or fewer where memory ran out.
        recomputes: Whether activations are computed again in the backward pass because memory ran out.
        pending: Losses and gradients' norms of its last updates, at which nobody has looked yet, (N, 2); only of one
            that goes on.
        best: What it was at the best of its evaluations, where the recipe asks for that.
    """

    base: Base
    trial: Trial
    method: Method
    context: TaskContext
    data: TaskData
    generator: torch.Generator
    adapters: Mapping[str, Any]
    modules: Mapping[str, nn.Module]
    private: nn.Module | None
    masters: Mapping[str, nn.Parameter]
    of_task: frozenset[str] = frozenset()
    optimizer: torch.optim.Optimizer
    rates: Sequence[float]
    multipliers: Sequence[float]

    done: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    evaluation: Evaluation | None = None
    error: BaseException | None = None
    initialise_seconds: float = 0.0
    prepare_seconds: float = 0.0
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    train_tokens: int = 0
    padded_tokens: int = 0
    forms: int = 0
    pack_lanes: int = 1
    compiled: bool = False
    recomputes: bool = False
    pending: Tensor = field(default_factory=lambda: torch.zeros(0, 2))
    best: Best | None = None

    def __post_init__(self) -> None:
        self._order: Iterator[list[Row]] = self._from_the_start()
        self._rows: list[Row] | None = None
        self.holds_rows = False
        self.rows_at_once = self.base.ranks.rows_at_once(int(self.recipe.batch_size), int(self.recipe.rows_at_once))

    @property
    def recipe(self) -> Any:
        """The task's recipe with the trial's values."""
        return self.context.recipe

    @property
    def steps(self) -> int:
        """The number of updates it is to do."""
        return len(self.multipliers)

    def rows(self) -> list[Row]:
        """Return the rows of the next update; the same ones until that update is done."""
        if self._rows is None:
            self._rows = next(self._order)
        return self._rows

    def _from_the_start(self) -> Iterator[list[Row]]:
        return draw(self.data, self.base.task.model_kind, self.recipe.batch_size, self.trial.seed)

    def upcoming(self, most: int) -> Iterator[list[Row]]:
        """Yield the rows of the next updates, at most so many; none where reading ahead could spoil what is read."""
        if self.holds_rows or not isinstance(self.data.train, Sequence):
            return iter([self.rows()] if self.holds_rows else [])
        return islice(self._from_the_start(), self.done, min(self.steps, self.done + most))

    def hold_rows(self) -> None:
        """Train on the rows of the next update again and again: for timing steps of one form."""
        self._order = repeat(self.rows())
        self.holds_rows = True

    def skip(self, updates: int) -> None:
        """Leave out the rows of the first updates: an earlier try has trained on them."""
        self._order, self._rows = islice(self._from_the_start(), updates, None), None

    def advance(self) -> None:
        """Count an update."""
        self._rows = None
        self.done += 1

    def collate(self, rows: Sequence[Sequence[Row]], forms: Forms = Forms()) -> list[Batch]:  # noqa: B008 - frozen
        """Return the micro-batches of one step of lanes like this one."""
        pad = self.context.tokenizer.pad_token_id
        longest = max(len(row.ids) for lane in rows for row in lane)
        self.base.check_length(longest)
        if forms.longest and longest > self.base.longest_flat:  # longer than foreseen: a window does not reach
            forms = Forms(multiple=forms.multiple, limit=forms.limit)
        uncounted = self.base.layout.uncounted if forms.longest else -1
        return collate(rows, pad, self.rows_at_once, forms, self.base.is_causal, uncounted)

    def trained(self) -> dict[str, nn.Module]:
        """Return the lane's own modules by layer name: adapters and wholly trained copies."""
        return {**self.adapters, **self.modules}

    @cached_property
    def dropouts(self) -> list[Dropout]:
        """Every dropout within its own modules."""
        modules = self.trained().values()
        return [each for module in modules for each in module.modules() if isinstance(each, Dropout)]

    def lays_flat(self) -> bool:
        """Return whether its model may see texts one after another in a row: not where a prompt stands before them."""
        return self.private is None or is_as_before(self.private)

    def packs(self) -> bool:
        """Return whether this lane can share batches with others."""
        sharable = self.base.rows_apart if any(each.p for each in self.dropouts) else self.base.rowwise
        return self.private is None and sharable.issuperset(self.trained())

    def parameters(self) -> list[nn.Parameter]:
        """Return everything that the optimizer updates."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def adapter_parameters(self) -> int:
        """Return the live number of trainable adapter parameters."""
        if self.private is not None:
            return sum(p.numel() for name, p in self.masters.items() if name not in self.of_task)
        return sum(p.numel() for adapter in self.adapters.values() for p in adapter.parameters() if p.requires_grad)

    def task_parameters(self) -> int:
        """Return the number of parameters that the task trains besides the adapters."""
        unique = {id(p): p.numel() for module in self.modules.values() for p in module.parameters()}
        unique |= {id(self.masters[name]): self.masters[name].numel() for name in self.of_task}
        return sum(unique.values())

    def state(self) -> dict[str, Tensor]:
        """Return everything trained, ``{layer.tensor: value}``, on the CPU, for safetensors."""
        if self.private is not None:
            return {name: p.detach().cpu().clone() for name, p in self.masters.items()}
        tensors: dict[str, Tensor] = {}
        for name, module in self.trained().items():
            for key, value in module.state_dict().items():
                tensors[f"{name}.{key}"] = value.detach().cpu().contiguous().clone()
        return tensors

    def consider(self, score: float | None, higher_is_better: bool) -> None:
        """Keep what is trained now, if it scores best so far on validation; of equals the first is kept."""
        if score is None or not math.isfinite(score):
            return
        sign = 1 if higher_is_better else -1
        if self.best is None or sign * score > sign * self.best.score:
            self.best = Best(self.done, score, self.state())

    @torch.no_grad()
    def go_back(self) -> None:
        """Make what is trained what it was at the best evaluation, if there was one. It is not to be trained on."""
        if self.best is None or self.best.step == self.done:
            return
        live = dict(self.private.named_parameters()) if self.private is not None else {}
        for name, master in self.masters.items():
            for parameter in (master, live[name]):
                parameter.copy_(self.best.state[name])
        for name, module in self.trained().items():
            for key, tensor in module.state_dict().items():
                tensor.copy_(self.best.state[f"{name}.{key}"])

    def leave(self) -> None:
        """Give every tensor storage of its own again, so that the lane can join another pack."""
        for module in self.trained().values():
            for parameter in module.parameters():
                parameter.data, parameter.grad = parameter.data.clone(), None
            for owner in module.modules():
                for key, buffer in owner._buffers.items():
                    owner._buffers[key] = None if buffer is None else buffer.clone()
