"""A lane: one trial's trainable state, wherever it trains.

    build      adapters on the chosen layers, copies of the modules that train whole, calibration, optimizer
    rows       what it trains on, update by update, in its own order
    state      what it trained, for saving

What is not here: lanes' steps (``pack``), the loop over them (``training``).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, repeat
from typing import Any, cast

import torch
from torch import Tensor, nn

from harness.contract.dropout import Dropout
from harness.contract.method import Calibration, Method, attaches
from harness.contract.task import Evaluation, TaskContext, TaskData
from harness.contract.trial import Trial
from harness.engine.batch import GPU_MULTIPLE, Batch, Row, collate, draw
from harness.engine.learning_rate import schedule
from harness.engine.losses import lane_losses
from harness.engine.model import select_layers
from harness.engine.resident import Base
from harness.engine.slots import Reader, pretrained, set_submodule
from harness.errors import ConfigError

CALIBRATION_BATCHES = 8
FRESH_SEED = 2**32  # plus the trial's seed: other numbers than those that adapters are drawn from


class Lane:
    """One trial's trainable state.

    Args:
        base: The resident model.
        trial: What to run.
        method: Built from the trial's config.
        layer_methods: Methods whose config differs on single layers, by layer name.
        context: For the task.
        data: The task's data, tokenised.
    """

    def __init__(
        self,
        base: Base,
        trial: Trial,
        method: Method,
        layer_methods: Mapping[str, Method],
        context: TaskContext,
        data: TaskData,
    ) -> None:
        self.base, self.trial, self.method, self.context, self.data = base, trial, method, context, data
        self.recipe = context.recipe
        self.steps = total_steps(self.recipe, data)
        self.generator = torch.Generator().manual_seed(trial.seed)
        self.adapters: dict[str, Any] = {}
        self.modules: dict[str, nn.Module] = {}
        self.private: nn.Module | None = None
        self.masters: dict[str, nn.Parameter] = {}
        self.done = 0  # updates so far
        self.history: list[dict[str, Any]] = []
        self.evaluation: Evaluation | None = None
        self.error: BaseException | None = None
        self.train_seconds = self.evaluate_seconds = 0.0
        self.train_tokens = 0
        self.compiled = False
        self.prepare_seconds = 0.0
        self.base_parameters = base.parameters
        self.pack_lanes = 1
        if attaches(method):
            self._attach()
        else:
            self._adapt(layer_methods)
        self.dropouts = [
            each for module in self.trained().values() for each in module.modules() if isinstance(each, Dropout)
        ]
        self._calibrate()
        self.optimizer, self.rates = self._optimizer()
        warmup = self.recipe.warmup_steps or round(self.recipe.warmup_fraction * self.steps)
        default = schedule(self.recipe.schedule, self.steps, warmup)
        self.multipliers = [method.learning_rate_multiplier(step, self.steps, default) for step in range(self.steps)]
        self._draw: Iterator[list[Row]] = draw(data, base.task.model_kind, self.recipe.batch_size, trial.seed)
        self._rows: list[Row] | None = None

    def rows(self) -> list[Row]:
        """Return the rows of the next update; the same ones until that update is done."""
        if self._rows is None:
            self._rows = next(self._draw)
        return self._rows

    def forms(self, steps: int) -> int:
        """Return how many forms of batch the first steps have, as a GPU pads them."""
        kind = self.base.task.model_kind
        rows = islice(draw(self.data, kind, self.recipe.batch_size, self.trial.seed), steps)
        return len({tuple(batch.shape() for batch in self.collate([row], GPU_MULTIPLE)) for row in rows})

    def hold_rows(self) -> None:
        """Train on the rows of the next update again and again: for timing steps of one form."""
        self._draw = repeat(self.rows())

    def advance(self) -> None:
        """Count an update."""
        self._rows = None
        self.done += 1

    def _adapt(self, layer_methods: Mapping[str, Method]) -> None:
        """Build an adapter for every target and a copy of every module that trains whole."""
        for name in select_layers(self.base.layers, self.trial.targets):
            linear = self.base.linear_slots[name].linear[0]
            self.adapters[name] = layer_methods.get(name, self.method).adapter(linear, self.generator)
        memory: dict[int, Any] = {}  # one memo, so that tied parameters stay tied in the copies
        for name, slot in self.base.module_slots.items():
            copied = copy.deepcopy(slot.frozen, memory).requires_grad_(True)
            self._draw_fresh(name, copied)
            high = torch.promote_types(self.base.dtype, torch.float32)
            self.modules[name] = copied.to(self.base.device, high)

    def _draw_fresh(self, name: str, module: nn.Module) -> None:
        """Draw a module that the checkpoint did not have from the trial's seed: the same one for every method."""
        if any(each == name or each.startswith(f"{name}.") for each in self.base.fresh):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(FRESH_SEED + self.trial.seed)
                module.to("cpu").apply(cast(Any, self.base.model)._init_weights)
                module.to(self.base.device)

    def _attach(self) -> None:
        """Give a method that does not live on linear layers a private copy of the model."""
        with pretrained(self.base.model):
            self.private = copy.deepcopy(self.base.model)
        for name in self.base.slots:
            set_submodule(self.private, name, self.private.get_submodule(name).frozen)  # type: ignore[arg-type]
        for name in self.base.module_slots:
            self._draw_fresh(name, self.private.get_submodule(name))
        self.method.attach(self.private, self.generator)
        for name, parameter in self.private.named_parameters():
            if parameter.requires_grad:
                high = torch.promote_types(parameter.dtype, torch.float32)
                self.masters[name] = parameter if high is parameter.dtype else nn.Parameter(parameter.detach().to(high))
        if not self.masters:
            raise ConfigError(f"method {self.method.name!r}: attach() marked no parameter as trainable")

    def _calibrate(self) -> None:
        """Let the method finish its initialisation from data, if it wants to."""
        if type(self.method).calibrate is Method.calibrate:
            return
        kind = self.base.task.model_kind
        rows = islice(draw(self.data, kind, self.recipe.batch_size, self.trial.seed), CALIBRATION_BATCHES)
        batches = [each.to(self.base.device) for row in rows for each in self.collate([row])]
        weights = {name: self.base.linear_slots[name].linear[0].weight for name in self.adapters}

        def loss(batch: Batch) -> Tensor:
            return lane_losses(self.base.model, self.base.task.model_kind, batch).sum()

        def weight_gradients() -> Mapping[str, Tensor]:
            for weight in weights.values():
                weight.requires_grad_(True)
            try:
                for batch in batches:
                    loss(batch).backward()  # type: ignore[no-untyped-call]
                return {name: cast(Tensor, weight.grad) / CALIBRATION_BATCHES for name, weight in weights.items()}
            finally:
                for weight in weights.values():
                    weight.grad = None
                    weight.requires_grad_(False)

        # Compiling the loss for every form of batch would take longer than all of this.
        with pretrained(self.base.model), torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            for name, module in self.modules.items():  # heads as they will train, not as the base's seed drew them
                self.base.slots[name].parts = ((Reader(module, self.base.dtype), 1),)
            self.method.calibrate(
                self.adapters, Calibration(self.base.model, batches, loss, weight_gradients, self.generator)
            )

    def collate(self, rows: Sequence[Sequence[Row]], multiple: int = 1) -> list[Batch]:
        """Return the micro-batches of one step of lanes like this one."""
        pad = self.context.tokenizer.pad_token_id
        return collate(rows, pad, self.recipe.micro_batch_size, multiple, self.base.is_causal)

    def trained(self) -> dict[str, nn.Module]:
        """Return the lane's own modules by layer name: adapters and wholly trained copies."""
        return {**self.adapters, **self.modules}

    def packs(self) -> bool:
        """Return whether this lane can share batches with others."""
        sharable = self.base.rows_apart if any(each.p for each in self.dropouts) else self.base.rowwise
        return self.private is None and sharable.issuperset(self.trained())

    def _optimizer(self) -> tuple[torch.optim.AdamW, list[float]]:
        """Return the lane's AdamW and the peak learning rate of each of its groups."""
        r, trained = self.recipe, [*self.adapters.items()]
        rate = self.trial.learning_rate
        if self.private is None:
            groups = self.method.parameter_groups(dict(trained), rate, r.weight_decay)
            rest = list({id(p): p for module in self.modules.values() for p in module.parameters()}.values())
        else:
            groups, rest = [], list(self.masters.values())
        # As the Hugging Face Trainer does, biases and the weights of norms are not decayed.
        for decay, chosen in (
            (r.weight_decay, [p for p in rest if p.ndim > 1]),
            (0.0, [p for p in rest if p.ndim <= 1]),
        ):
            if chosen:
                groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
        rates = [float(group["lr"]) for group in groups]
        on_gpu = self.base.device.type == "cuda"
        for group in groups:  # a capturable optimizer reads its rate from the device; the pack sets it
            group["lr"] = torch.tensor(float(group["lr"]), device=self.base.device) if on_gpu else float(group["lr"])
        optimizer = torch.optim.AdamW(
            groups, betas=(r.beta1, r.beta2), eps=r.epsilon, weight_decay=r.weight_decay, fused=True, capturable=on_gpu
        )
        return optimizer, rates

    def parameters(self) -> list[nn.Parameter]:
        """Return everything that the optimizer updates."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def adapter_parameters(self) -> int:
        """Return the live number of trainable adapter parameters."""
        if self.private is not None:
            return sum(p.numel() for p in self.masters.values())
        return sum(p.numel() for adapter in self.adapters.values() for p in adapter.parameters() if p.requires_grad)

    def task_parameters(self) -> int:
        """Return the number of parameters that the task trains besides the adapters."""
        unique = {id(p): p.numel() for module in self.modules.values() for p in module.parameters()}
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

    def leave(self) -> None:
        """Give every tensor storage of its own again, so that the lane can join another pack."""
        for module in self.trained().values():
            for parameter in module.parameters():
                parameter.data, parameter.grad = parameter.data.clone(), None
            for owner in module.modules():
                for key, buffer in owner._buffers.items():
                    owner._buffers[key] = None if buffer is None else buffer.clone()


def total_steps(recipe: Any, data: TaskData) -> int:
    """Return the number of optimizer updates of a recipe on this data."""
    if recipe.steps:
        return int(recipe.steps)
    if not recipe.epochs or not isinstance(data.train, Sequence):
        raise ConfigError("a recipe needs steps, or epochs over data of known length; give --steps N")
    return max(1, math.ceil(float(recipe.epochs) * len(data.train) / int(recipe.batch_size)))
