"""What trials share, kept from one to the next: the base model, its tokenizer, data, and what a method costs alone.

What is not here: slots in a base model (``resident``), how a lane is made (``build``), measuring a cost (``cost``).
"""

from __future__ import annotations

import gc
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.contract.method import Method
from harness.contract.task import Task, TaskContext, TaskData
from harness.contract.trial import Trial
from harness.engine.build import build_lane
from harness.engine.cost import SoloCost, measure_solo
from harness.engine.lane import Lane
from harness.engine.memory import keep
from harness.engine.model import ModelChoice, build_on_meta, load_model, load_tokenizer
from harness.engine.probe import name_padding
from harness.engine.ranks import Ranks, Together
from harness.engine.resident import Base
from harness.engine.seal import Seal
from harness.engine.sharding import load_divided

MOST_DATA = 8  # tasks' data kept; the oldest goes first
_COST_KEYS = (
    "task", "recipe", "model", "model_revision", "method", "config", "layer_settings", "targets", "precision",
    "quantize",
)  # fmt: skip


@dataclass(frozen=True)
class _Loaded:
    """The base model of the last trial, what tells it from others, its tokenizer, and the seal on its weights."""

    key: tuple[Any, ...]
    base: Base
    tokenizer: Any
    seal: Seal | None


class Shared:
    """Loads what a trial needs, or hands out what an earlier one loaded. Of base models it keeps one.

    Args:
        device: Where to train.
        data_dir: Local tables, or ``None``.
        allow_code_execution: Whether model-written code may run.
        recomputes: Whether the backward pass computes activations again instead of keeping them.
        ranks: The processes over which a base model is divided; mostly one.
    """

    def __init__(
        self,
        device: torch.device,
        data_dir: Path | None = None,
        allow_code_execution: bool = False,
        recomputes: bool = False,
        ranks: Ranks = Ranks(),  # noqa: B008 - has no state
    ) -> None:
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # for whatever code does not say which GPU it means
        self.device, self.data_dir, self.ranks = device, data_dir, ranks
        self.allow_code_execution, self.recomputes = allow_code_execution, recomputes
        self._loaded: _Loaded | None = None
        self._data: dict[tuple[Any, ...], TaskData] = {}
        self._costs: dict[str, SoloCost] = {}

    def base(self, trial: Trial, task: Task) -> Base:
        """Return the resident model that a trial trains on."""
        return self._load(trial, task).base

    def changed(self) -> str:
        """Return the name of a pretrained weight that somebody wrote to, or nothing; such a base is not kept.

        Of a base that is divided over several processes nobody has the whole, and it is not looked at.
        """
        if self._loaded is None or self._loaded.seal is None or not (name := self._loaded.seal.broken()):
            return ""
        self._loaded = None
        gc.unfreeze()
        return name

    def lane(self, trial: Trial, method: type[Method], task: Task) -> Lane:
        """Return a new lane for a trial.

        Args:
            trial: What to run.
            method: Its method.
            task: Its task.

        Raises:
            RuntimeError: The method trains another number of parameters than it says.
        """
        loaded = self._load(trial, task)
        context = TaskContext(
            tokenizer=loaded.tokenizer, recipe=trial.build_recipe(task), seed=trial.seed, data_dir=self.data_dir,
            adapter_parameters=trial.adapter_parameters, allow_code_execution=self.allow_code_execution,
            base_model=loaded.base.model,
        )  # fmt: skip
        data = self._load_data(trial, task, context)
        lane = build_lane(loaded.base, trial, *trial.build_methods(method), context, data)
        self.ranks.align(
            each for module in lane.trained().values() for each in (*module.parameters(), *module.buffers())
        )
        if lane.adapter_parameters() != trial.adapter_parameters:
            raise RuntimeError(
                f"method {trial.method!r} trains {lane.adapter_parameters():,} adapter parameters, "
                f"its formula says {trial.adapter_parameters:,}: correct trainable_parameters() "
                f"(`harness check {trial.method}`)"
            )
        return lane

    def solo_cost(self, trial: Trial, method: type[Method], task: Task) -> SoloCost:
        """Return what trials with this method and these settings cost alone, measured once."""
        values = trial.to_json()
        key = json.dumps([values.get(name) for name in _COST_KEYS], sort_keys=True)
        if key not in self._costs:
            self._costs[key] = measure_solo(self.base(trial, task), lambda: self.lane(trial, method, task))
        return self._costs[key]

    def _load(self, trial: Trial, task: Task) -> _Loaded:
        recipe = trial.build_recipe(task)
        shape = json.dumps({**task.model_arguments(recipe)}, sort_keys=True, default=str)
        key = (trial.task, trial.model, trial.model_revision, trial.precision, trial.quantize, shape)
        if self._loaded is None or self._loaded.key != key:
            if self._loaded is not None:  # free the old one first
                self._loaded = None
                gc.unfreeze()
            choice = ModelChoice(trial.model, trial.model_revision)
            model, fresh = self._load_model(choice, task, recipe, trial)
            tokenizer = load_tokenizer(choice, task, recipe)
            name_padding(model.config, tokenizer.pad_token_id)
            base = Base(
                model, task, trial.precision, fresh, self.recomputes, quantize=trial.quantize, device=self.device,
                ranks=self.ranks,
            )  # fmt: skip
            self._loaded = _Loaded(key, base, tokenizer, Seal(base) if self.ranks.count == 1 else None)
            keep()
        return self._loaded

    def _load_model(self, choice: ModelChoice, task: Task, recipe: Any, trial: Trial) -> tuple[nn.Module, list[str]]:
        whole = torch.device("cpu") if trial.quantize or self.ranks.count > 1 else self.device
        load = partial(load_model, choice, task, recipe, trial.precision, whole)
        if not isinstance(self.ranks, Together):
            return load()
        empty = partial(build_on_meta, choice, task, recipe)
        return load_divided(load, empty, task.trains, self.ranks, self.device)

    def _load_data(self, trial: Trial, task: Task, context: TaskContext) -> TaskData:
        seed = trial.seed if task.seeded_data else None
        key = (trial.task, json.dumps(trial.to_json()["recipe"], sort_keys=True), trial.model_revision, seed)
        if key not in self._data:
            if len(self._data) >= MOST_DATA:
                self._data.pop(next(iter(self._data)))
            self._data[key] = task.load(context)
        return self._data[key]
