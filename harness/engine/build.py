"""How a lane is made. ``build_lane`` is the order: adapters, whole modules, calibration, optimizer, schedule.

What is not here: the lane itself (``lane``), the shapes of schedules (``learning_rate``).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn

from harness.contract.adapter import Adapter
from harness.contract.method import Calibration, Method, attaches
from harness.contract.task import TaskContext, TaskData
from harness.contract.trial import Trial
from harness.engine.attached import attach, trained_by_task
from harness.engine.batch import Batch, collate, draw
from harness.engine.compiling import compiling
from harness.engine.lane import Lane
from harness.engine.layers import select_layers, set_submodule
from harness.engine.learning_rate import schedule
from harness.engine.losses import lane_losses
from harness.engine.quantised import QuantisedLinear
from harness.engine.resident import Base
from harness.engine.slots import Slot, pretrained
from harness.errors import ConfigError

CALIBRATION_BATCHES = 8
FRESH_SEED = 2**32  # plus the trial's seed: other numbers than those that adapters are drawn from


def build_lane(
    base: Base,
    trial: Trial,
    method: Method,
    layer_methods: Mapping[str, Method],
    context: TaskContext,
    data: TaskData,
) -> Lane:
    """Return a trial's lane, ready for its first update.

    Args:
        base: The resident model.
        trial: What to run.
        method: Built from the trial's config.
        layer_methods: Methods whose config differs on single layers, by layer name.
        context: For the task.
        data: The task's data, tokenised.
    """
    steps = total_steps(context.recipe, data)
    generator = torch.Generator().manual_seed(trial.seed)
    adapters: dict[str, Adapter] = {}
    modules: dict[str, nn.Module] = {}
    private: nn.Module | None = None
    masters: dict[str, nn.Parameter] = {}
    of_task: frozenset[str] = frozenset()
    begin = _now(base.device)
    if attaches(method):
        private = _private_model(base, trial.seed)
        heads = {name: private.get_submodule(name) for name in base.module_slots}
        private = attach(method, private, select_layers(base.layers, trial.targets), generator)
        of_task = trained_by_task(private, heads)
        masters = _masters(private)
    else:
        adapters = _adapters(base, trial.targets, method, layer_methods, generator)
        modules = _whole_modules(base, trial.seed)
    if type(method).calibrate is not Method.calibrate:
        batches = _calibration_batches(base, trial.seed, context, data)
        _calibrate(base, method, adapters, modules, batches, generator)
    initialise_seconds = _now(base.device) - begin
    if not (method.traits.trains or masters):
        steps = 0  # nothing trains: the model is scored as it is
    groups = _parameter_groups(method, context.recipe, trial.learning_rate, adapters, modules, masters)
    rates = [float(group["lr"]) for group in groups]
    return Lane(
        base=base, trial=trial, method=method, context=context, data=data, generator=generator,
        adapters=adapters, modules=modules, private=private, masters=masters, of_task=of_task,
        optimizer=_optimizer(groups, context.recipe, base.device), rates=rates,
        multipliers=_multipliers(method, context.recipe, steps), initialise_seconds=initialise_seconds,
    )  # fmt: skip


def _now(device: torch.device) -> float:
    """Return the time in seconds, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _adapters(
    base: Base,
    targets: Sequence[str],
    method: Method,
    layer_methods: Mapping[str, Method],
    generator: torch.Generator,
) -> dict[str, Adapter]:
    """Return an adapter for every target."""
    return {
        name: layer_methods.get(name, method).adapter(base.layer(name), generator)
        for name in select_layers(base.layers, targets)
    }


def _whole_modules(base: Base, seed: int) -> dict[str, nn.Module]:
    """Return a copy, in at least float32, of every module that trains whole."""
    high = torch.promote_types(base.dtype, torch.float32)
    memory: dict[int, Any] = {}  # one memo, so that tied parameters stay tied in the copies
    modules: dict[str, nn.Module] = {}
    for name, slot in base.module_slots.items():
        module = copy.deepcopy(slot.frozen, memory).requires_grad_(True)
        _draw_fresh(base, seed, name, module)
        modules[name] = module.to(base.device, high)
    return modules


def _draw_fresh(base: Base, seed: int, name: str, module: nn.Module) -> None:
    """Draw a module that the checkpoint did not have from the trial's seed: the same one for every method."""
    if any(each == name or each.startswith(f"{name}.") for each in base.fresh):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(FRESH_SEED + seed)
            module.to("cpu").apply(cast(Any, base.model)._init_weights)
            module.to(base.device)


def _private_model(base: Base, seed: int) -> nn.Module:
    """Return a copy of the model without slots, for a method that does not live on linear layers.

    Weights in 4 bits are shared with it: nothing can train or change them.
    """
    kept = [each for module in base.model.modules() if isinstance(module, QuantisedLinear) for each in module.buffers()]
    with pretrained(base.model):
        private = copy.deepcopy(base.model, {id(each): each for each in kept})
    for name, module in list(private.named_modules(remove_duplicate=False)):
        if isinstance(module, Slot):
            set_submodule(private, name, module.frozen)
    for name in base.module_slots:
        _draw_fresh(base, seed, name, private.get_submodule(name))
    return private


def _masters(private: nn.Module) -> dict[str, nn.Parameter]:
    """Return what trains in a private model, by name, in at least float32."""
    masters = {}
    for name, parameter in private.named_parameters():
        if parameter.requires_grad:
            high = torch.promote_types(parameter.dtype, torch.float32)
            masters[name] = parameter if high is parameter.dtype else nn.Parameter(parameter.detach().to(high))
    return masters


def _calibration_batches(base: Base, seed: int, context: TaskContext, data: TaskData) -> list[Batch]:
    """Return the first batches that the lane will train on."""
    recipe, pad = context.recipe, context.tokenizer.pad_token_id
    rows = islice(draw(data, base.task.model_kind, recipe.batch_size, seed), CALIBRATION_BATCHES)
    pieces = (collate([row], pad, recipe.rows_at_once, causal=base.is_causal) for row in rows)
    return [batch.to(base.device) for piece in pieces for batch in piece]


def _calibrate(
    base: Base,
    method: Method,
    adapters: Mapping[str, Adapter],
    modules: Mapping[str, nn.Module],
    batches: Sequence[Batch],
    generator: torch.Generator,
) -> None:
    """Let the method finish its initialisation from data."""
    layers = {name: base.linear_slots[name].linear[0] for name in adapters}

    def loss(batch: Batch) -> Tensor:
        return lane_losses(base.model, base.task.model_kind, batch).sum()

    def weight_gradients() -> Mapping[str, Tensor]:
        weights = {
            name: layer.unpack() if isinstance(layer, QuantisedLinear) else layer.weight
            for name, layer in layers.items()
        }
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
            for layer in layers.values():
                if isinstance(layer, QuantisedLinear):
                    layer.pack()

    # Compiling the loss for every form of batch would take longer than all of this.
    with pretrained(base.model), torch.enable_grad(), compiling(False):
        base.read(modules)  # heads as they will train, not as the base's seed drew them
        method.calibrate(adapters, Calibration(base.model, batches, loss, weight_gradients, generator))


def _parameter_groups(
    method: Method,
    recipe: Any,
    rate: float,
    adapters: Mapping[str, Adapter],
    modules: Mapping[str, nn.Module],
    masters: Mapping[str, nn.Parameter],
) -> list[dict[str, Any]]:
    """Return everything that trains, in groups with a learning rate and a weight decay each."""
    if masters:
        groups, rest = [], list(masters.values())
    else:
        groups = method.parameter_groups(dict(adapters), rate, recipe.weight_decay)
        rest = list({id(p): p for module in modules.values() for p in module.parameters()}.values())
    # As the Hugging Face Trainer does, biases and the weights of norms are not decayed.
    for decay, chosen in (
        (recipe.weight_decay, [p for p in rest if p.ndim > 1]),
        (0.0, [p for p in rest if p.ndim <= 1]),
    ):
        if chosen:
            groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
    return groups


def _optimizer(groups: Sequence[dict[str, Any]], recipe: Any, device: torch.device) -> torch.optim.Optimizer:
    on_gpu = device.type == "cuda"
    for group in groups:  # a capturable optimizer reads its rate from the device; the pack sets it
        group["lr"] = torch.tensor(float(group["lr"]), device=device) if on_gpu else float(group["lr"])
    return torch.optim.AdamW(
        groups, betas=(recipe.beta1, recipe.beta2), eps=recipe.epsilon, weight_decay=recipe.weight_decay,
        fused=True, capturable=on_gpu,
    )  # fmt: skip


def _multipliers(method: Method, recipe: Any, steps: int) -> list[float]:
    """Return the schedule: what the peak learning rates are multiplied by, for every update."""
    default = schedule(recipe.schedule, steps, recipe.warmup(steps))
    return [method.learning_rate_multiplier(step, steps, default) for step in range(steps)]


def total_steps(recipe: Any, data: TaskData) -> int:
    """Return the number of optimizer updates of a recipe on this data."""
    if recipe.steps != "auto":
        return int(recipe.steps)
    if not recipe.epochs or not isinstance(data.train, Sequence):
        raise ConfigError("a recipe needs steps, or epochs over data of known length; give --steps N")
    return max(1, math.ceil(float(recipe.epochs) * len(data.train) / int(recipe.batch_size)))
