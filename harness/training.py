"""The training loop. There is one, for every method: K lanes over one resident frozen model, K = 1 included.

    Base     the resident model, with slots in the places of the layers that trials adapt
    Lane     one trial's trainable state: adapters, optimizer, schedule, data order, history
    Pack     lanes that train together: ``Pack.step`` is one update of each

    train    the loop over updates: evaluation, divergence, running out of memory

What is not here: what trials there are (``plan``), which train together (``schedule``), processes (``worker``).
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from itertools import islice
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from harness.batch import Batch, Row, collate, draw
from harness.decomposition import announce
from harness.dropout import Dropout
from harness.errors import ConfigError, TrialDivergedError
from harness.lanes import Leaves, LinearSlot, ModuleSlot, Reader, Slot, Stack, is_alike, pretrained, set_submodule
from harness.learning_rate import schedule
from harness.method import Adapter, Calibration, Method, StepInfo, attaches
from harness.model import (
    DTYPES,
    count_parameters,
    is_causal,
    linear_layers,
    select_layers,
    trained_modules,
    unmasked,
    use_capturable_attention,
)
from harness.task import Evaluation, ModelKind, Task, TaskContext, TaskData
from harness.trial import Trial

logger = logging.getLogger(__name__)

CALIBRATION_BATCHES = 8


class Base:
    """The resident frozen model.

    Args:
        model: Frozen, on its device.
        task: Says what the model's output means.
        precision: Of activations and frozen weights.
        fresh: Parameters that the checkpoint did not have: each trial draws them from its own seed.
        recomputes: Whether the backward pass computes each block's activations again instead of keeping them: less
            memory, a third more time, the same result.
    """

    def __init__(
        self, model: nn.Module, task: Task, precision: str, fresh: Sequence[str] = (), recomputes: bool = False
    ) -> None:
        self.model, self.task, self.dtype, self.fresh = model.eval(), task, DTYPES[precision], frozenset(fresh)
        self.device = next(model.parameters()).device
        use_capturable_attention(model)
        self.parameters = count_parameters(model)
        self.is_causal = is_causal(model)
        self.layers = linear_layers(model, task.trains)
        whole = trained_modules(model, task.trains)
        self.linear_slots = {name: LinearSlot(model.get_submodule(name)) for name in self.layers}
        self.module_slots = {name: ModuleSlot(model.get_submodule(name)) for name in whole}
        self.slots: dict[str, Slot] = {**self.linear_slots, **self.module_slots}
        for name, slot in self.slots.items():
            set_submodule(model, name, slot)
        if recomputes:
            for block in self.blocks:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        announce(slot.linear[0].weight for slot in self.linear_slots.values())

    @cached_property
    def blocks(self) -> list[nn.Module]:
        """The repeated blocks of the model: compiling one compiles all."""
        lists = [each for each in self.model.modules() if isinstance(each, nn.ModuleList) and len(each) > 1]
        alike = [list(each) for each in lists if len({type(block) for block in each}) == 1]
        return max(alike, key=lambda blocks: sum(count_parameters(block) for block in blocks), default=[])

    def clear(self) -> None:
        """Take every lane out: the model is the pretrained one again."""
        for slot in self.slots.values():
            slot.parts = ()


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
        self._draw = draw(data, base.task.model_kind, self.recipe.batch_size, trial.seed)
        self._rows: list[Row] | None = None

    def rows(self) -> list[Row]:
        """Return the rows of the next update; the same ones until that update is done."""
        if self._rows is None:
            self._rows = next(self._draw)
        return self._rows

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
        seed = int(torch.randint(2**31, (), generator=self.generator))
        for name, slot in self.base.module_slots.items():
            copied = copy.deepcopy(slot.frozen, memory).requires_grad_(True)
            if any(each == name or each.startswith(f"{name}.") for each in self.base.fresh):
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed)
                    copied.to("cpu").apply(cast(Any, self.base.model)._init_weights)
            high = torch.promote_types(self.base.dtype, torch.float32)
            self.modules[name] = copied.to(self.base.device, high)

    def _attach(self) -> None:
        """Give a method that does not live on linear layers a private copy of the model."""
        with pretrained(self.base.model):
            self.private = copy.deepcopy(self.base.model)
        for name in self.base.slots:
            set_submodule(self.private, name, self.private.get_submodule(name).frozen)  # type: ignore[arg-type]
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

        with pretrained(self.base.model), torch.enable_grad():
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

    def _optimizer(self) -> tuple[torch.optim.AdamW, list[float]]:
        """Return the lane's AdamW and the peak learning rate of each of its groups."""
        r, trained = self.recipe, [*self.adapters.items()]
        rate = self.trial.learning_rate
        if self.private is None:
            groups = self.method.parameter_groups(dict(trained), rate, r.weight_decay)
            rest = list({id(p): p for module in self.modules.values() for p in module.parameters()}.values())
            for decay, chosen in (
                (r.weight_decay, [p for p in rest if p.ndim > 1]),
                (0.0, [p for p in rest if p.ndim <= 1]),
            ):
                if chosen:
                    groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
        else:
            groups = [{"params": list(self.masters.values()), "lr": rate, "weight_decay": r.weight_decay}]
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


class Pack:
    """Lanes that train together. ``step`` is one update of each.

    On a GPU a step is captured in a CUDA graph per form of batch, after one ordinary step of that form, and replayed
    from then on: launching thousands of small kernels from Python costs more than running them.

    Args:
        base: The resident model.
        lanes: All have done the same number of updates. At least one.
        compiled: Whether to compile the model's repeated block: a faster step after tens of seconds of compiling.
    """

    def __init__(self, base: Base, lanes: Sequence[Lane], compiled: bool = False) -> None:
        self.base, self.lanes, self.compiled = base, order(lanes), compiled
        if compiled:
            for block in base.blocks:
                if block._compiled_call_impl is None:
                    block.compile(dynamic=False)
            # Layers may differ in rank; each combination in a block is a compilation of its own.
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 32)
        self.leaves = Leaves(base.dtype)
        self.parts: dict[str, tuple[tuple[Stack, int], ...]] = {}
        self.model = base.model
        self._call: Callable[..., Any] = self.model
        if self.lanes[0].private is not None:
            self._bind_private(self.lanes[0])
        else:
            self._bind()
        self._acting = [lane for lane in self.lanes if type(lane.method).after_step is not Method.after_step]
        self._dropouts = [each for lane in self.lanes for each in lane.dropouts if each.p]
        for lane in self.lanes:
            micro_batches = -(-lane.recipe.batch_size // (lane.recipe.micro_batch_size or lane.recipe.batch_size))
            for dropout in lane.dropouts:
                if dropout.p:
                    dropout.step.fill_(lane.done * micro_batches)
        self._rates = self._bind_rates()
        self._stream = torch.cuda.Stream() if base.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._graphs: dict[tuple[Any, ...], _Graph | _Eager] = {}
        self._seen: Counter[tuple[Any, ...]] = Counter()

    def _bind(self) -> None:
        names = dict.fromkeys(name for lane in self.lanes for name in lane.trained())
        for name in names:
            parts: list[tuple[Stack, int]] = []
            for group in _alike(self.lanes, name):
                parts.append((Stack([lane.trained()[name] for lane in group], self.leaves), len(group)))
            self.parts[name] = tuple(parts)

    def _bind_private(self, lane: Lane) -> None:
        """A private model's own parameters are the leaves; in half precision the masters are apart."""
        self.model = self._call = cast(nn.Module, lane.private)
        leaves = {name: self.leaves.parameter([master]) for name, master in lane.masters.items()}
        live = dict(self.model.named_parameters())
        if any(leaf is not live[name] for name, leaf in leaves.items()):
            for name, leaf in leaves.items():
                live[name].data = leaf.data  # evaluation sees the trained values
            self._call = lambda *args, **kwargs: functional_call(self.model, leaves, args, kwargs)

    def _bind_rates(self) -> tuple[Tensor, Tensor] | None:
        """On a GPU, point every group's learning rate into one tensor; return it and its values for every step."""
        if self.base.device.type != "cuda":
            return None
        groups = [
            (lane, group, rate)
            for lane in self.lanes
            for group, rate in zip(lane.optimizer.param_groups, lane.rates, strict=True)
        ]
        now = torch.zeros(len(groups), device=self.base.device)
        for place, (_, group, _) in enumerate(groups):
            group["lr"] = now[place]
        longest = max(lane.steps for lane in self.lanes)
        table = [[rate * m for m in lane.multipliers] + [0.0] * (longest - lane.steps) for lane, _, rate in groups]
        return now, torch.tensor(table, device=self.base.device).T.contiguous()

    def step(self) -> Tensor:
        """Do one update of every lane and return their training losses before it, shape (K,), on the device."""
        lane = self.lanes[0]
        on_gpu = self._stream is not None
        batches = lane.collate([each.rows() for each in self.lanes], multiple=GPU_MULTIPLE if on_gpu else 1)
        self._set_rates(lane.done)
        for each in self.lanes:
            for module in each.trained().values():
                module.train()
        for name, parts in self.parts.items():
            self.base.slots[name].parts = parts
        try:
            with torch.compiler.set_stance("default" if self.compiled else "force_eager"):
                losses = self._step_on_gpu(batches) if on_gpu else self._step(batches)
        finally:
            self.base.clear()
        for each in self.lanes:
            each.train_tokens += sum(len(row.ids) for row in each.rows())
            each.advance()
        with torch.no_grad():
            for each in (lane for lane in self._acting if lane.error is None):
                each.method.after_step(StepInfo(each.done, each.steps, each.adapters, each.optimizer, each.generator))
            if self._acting:
                self.leaves.values_down()
        return losses

    def _step_on_gpu(self, batches: Sequence[Batch]) -> Tensor:
        assert self._stream is not None
        form = tuple(batch.shape() for batch in batches)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._seen[form] += 1
            if self._seen[form] <= WARM_STEPS or (form not in self._graphs and len(self._graphs) == MOST_GRAPHS):
                losses = self._step([batch.to(self.base.device) for batch in batches])
            else:
                if form not in self._graphs:
                    self._graphs[form] = self._capture(batches)
                losses = self._graphs[form].replay(batches)
        torch.cuda.current_stream().wait_stream(self._stream)
        return losses

    def _capture(self, batches: Sequence[Batch]) -> _Graph | _Eager:
        """Return the captured step; where something in it cannot be captured, the ordinary step, and say so."""
        assert self._stream is not None
        generator = torch.cuda.default_generators[self.base.device.index or 0]
        try:
            return _Graph(self._step, batches, self.base.device, self._stream)
        except torch.OutOfMemoryError:
            generator.graphsafe_set_state(torch.Generator(self.base.device).graphsafe_get_state())
            raise
        except RuntimeError as error:
            generator.graphsafe_set_state(torch.Generator(self.base.device).graphsafe_get_state())  # still "capturing"
            names = ", ".join(dict.fromkeys(lane.trial.method for lane in self.lanes))
            logger.warning("a step of %s cannot be captured in a CUDA graph, and runs slower: %s", names, error)
            logger.debug("", exc_info=True)
            return _Eager(self._step, self.base.device)

    def _set_rates(self, done: int) -> None:
        if self._rates is not None:
            now, table = self._rates
            now.copy_(table[done])
            return
        for lane in self.lanes:
            for group, rate in zip(lane.optimizer.param_groups, lane.rates, strict=True):
                group["lr"] = rate * lane.multipliers[done]

    def _step(self, batches: Sequence[Batch]) -> Tensor:
        """Do the part of a step that is the same every time: gradients, clipping, optimizers. Waits for nothing."""
        losses = self._gradients(batches)
        with torch.no_grad():
            for lane in self.lanes:
                if lane.recipe.clip_norm:
                    nn.utils.clip_grad_norm_(lane.parameters(), lane.recipe.clip_norm, foreach=True)
                lane.optimizer.step()
            self.leaves.values_down()
        return losses

    def _gradients(self, batches: Sequence[Batch]) -> Tensor:
        self.leaves.drop_gradients()
        total = torch.zeros(len(self.lanes), device=self.base.device)
        for batch in batches:
            losses = lane_losses(self._call, self.base.task.model_kind, batch, self.model)
            losses.sum().backward()  # type: ignore[no-untyped-call]
            total += losses.detach()
            for dropout in self._dropouts:
                dropout.advance()
        self.leaves.gradients_up()
        for lane in self.lanes:
            extra = lane.method.extra_loss(lane.adapters)
            if extra is not None:
                extra.backward()  # type: ignore[no-untyped-call]
        return total

    def without(self, gone: Sequence[Lane]) -> Pack | None:
        """Return a pack of the other lanes, at the same step; ``None`` where there is none."""
        for lane in self.lanes:
            lane.leave()
        stay = [lane for lane in self.lanes if lane not in gone]
        return Pack(self.base, stay, self.compiled) if stay else None


GPU_MULTIPLE = 16  # tokens: batches are padded to few different forms, so that few graphs are captured
WARM_STEPS = 1  # ordinary steps of a form before it is captured
MOST_GRAPHS = 32  # per pack; batches of further forms run uncaptured


class _Graph:
    """One captured step: fixed input tensors, and the kernels that a step launches.

    Args:
        step: What to capture.
        batches: Of the form to capture.
        device: Where it runs.
        stream: Of the pack; everything of a pack runs on it.
    """

    def __init__(
        self,
        step: Callable[[Sequence[Batch]], Tensor],
        batches: Sequence[Batch],
        device: torch.device,
        stream: torch.cuda.Stream,
    ) -> None:
        self.inputs = [batch.to(device) for batch in batches]
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=stream):
            self.losses = step(self.inputs)

    def replay(self, batches: Sequence[Batch]) -> Tensor:
        """Run the step on other batches of the same form; return a copy of the losses."""
        for old, new in zip(self.inputs, batches, strict=True):
            for name, target in vars(old).items():
                if isinstance(target, Tensor):
                    target.copy_(getattr(new, name).pin_memory(), non_blocking=True)
        self.graph.replay()
        return self.losses.clone()


class _Eager:
    """A step that cannot be captured."""

    def __init__(self, step: Callable[[Sequence[Batch]], Tensor], device: torch.device) -> None:
        self.step, self.device = step, device

    def replay(self, batches: Sequence[Batch]) -> Tensor:
        """Run the step."""
        return self.step([batch.to(self.device) for batch in batches])


@contextmanager
def evaluating(base: Base, lane: Lane) -> Iterator[nn.Module]:
    """Yield the model with one lane's modules active, in evaluation mode and without gradients."""
    model = lane.private if lane.private is not None else base.model
    for name, module in lane.trained().items():
        module.eval()
        base.slots[name].parts = ((Reader(module, base.dtype), 1),)
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield model
    finally:
        base.clear()


def lane_losses(call: Callable[..., Any], kind: ModelKind, batch: Batch, model: nn.Module | None = None) -> Tensor:
    """Return each lane's mean training loss, shape (K,).

    Logits are computed only where they are wanted: the output head sees just those hidden states.

    Args:
        call: The model, or a function that runs it with other tensors.
        kind: What labels mean.
        batch: On the model's device.
        model: The module behind ``call``, if that is a function.
    """
    module = cast(Any, model if model is not None else call)
    arguments: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    with ExitStack() as stack:
        if batch.attention_mask is None:
            stack.enter_context(unmasked())
            # A mask of ones keeps transformers from searching the positions for packed sequences.
            arguments["attention_mask"] = torch.ones_like(batch.input_ids)
        if batch.index is None:
            logits = call(**arguments).logits
        else:
            head = module.get_output_embeddings()
            size = len(batch.index) * int(getattr(head, "out_features", 0))
            if size > MOST_LOGITS and not _changes_logits(module):
                return _chunked_losses(call, head, arguments, batch, -(-size // MOST_LOGITS))
            stack.enter_context(only_at(head, batch.index))
            logits = call(**arguments, use_cache=False).logits
    if kind is ModelKind.REGRESSION:
        each = (logits.squeeze(-1).float() - batch.targets).square()
    else:
        each = token_losses(logits, batch.targets)
    weighted: Tensor = (each * batch.weights).view(batch.lanes, -1).sum(1)
    return weighted


MOST_LOGITS = 2**29  # at once; beyond, logits are computed in pieces, and again in the backward pass


def _changes_logits(model: Any) -> bool:
    """Return whether the model does something to its head's output, e.g. cap or scale it."""
    names = ("final_logit_softcapping", "logit_scale", "logits_scaling", "logits_soft_cap", "lm_head_multiplier")
    return any(getattr(model.config, name, None) not in (None, 1, 1.0) for name in names)


def _chunked_losses(
    call: Callable[..., Any], head: nn.Module, arguments: Mapping[str, Any], batch: Batch, chunks: int
) -> Tensor:
    """Return each lane's mean loss, shape (K,), never holding more than a chunk of logits."""
    caught: list[Tensor] = []

    def catch(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        caught.append(inputs[0].flatten(0, -2)[batch.index])
        return (inputs[0][:, :1], *inputs[1:])  # the model's own logits are not used

    hook = head.register_forward_pre_hook(catch)
    try:
        call(**arguments, use_cache=False)
    finally:
        hook.remove()

    def losses(hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        # Lanes stay in order within a chunk, for heads that each lane trains itself.
        each = token_losses(head(hidden.flatten(0, 1)), targets.flatten()) * weights.flatten()
        return each.view(batch.lanes, -1).sum(1)

    hidden = caught[0].view(batch.lanes, -1, caught[0].shape[-1])
    targets, weights = (each.view(batch.lanes, -1) for each in (batch.targets, batch.weights))
    pieces = zip(*(each.chunk(chunks, dim=1) for each in (hidden, targets, weights)), strict=True)
    parts = [checkpoint(losses, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
    return torch.stack(parts).sum(0)


@contextmanager
def only_at(head: nn.Module, index: Tensor) -> Iterator[None]:
    """Let an output head see only the hidden states at these rows of the flattened (B T) positions."""

    def gather(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].flatten(0, -2)[index], *inputs[1:])

    hook = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        hook.remove()


@torch.compile(dynamic=False)
def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return each token's cross-entropy in float32, shape (N,). Compiled, it reads large logits once."""
    return cross_entropy(logits.float(), targets, reduction="none")


def total_steps(recipe: Any, data: TaskData) -> int:
    """Return the number of optimizer updates of a recipe on this data."""
    if recipe.steps:
        return int(recipe.steps)
    if not recipe.epochs or not isinstance(data.train, Sequence):
        raise ConfigError("a recipe needs steps, or epochs over data of known length; give --steps N")
    return max(1, math.ceil(float(recipe.epochs) * len(data.train) / int(recipe.batch_size)))


def order(lanes: Sequence[Lane]) -> list[Lane]:
    """Return the lanes with alike ones beside each other, otherwise in the given order."""
    kinds: list[list[Lane]] = []
    for lane in lanes:
        for kind in kinds:
            if _same_code(kind[0], lane):
                kind.append(lane)
                break
        else:
            kinds.append([lane])
    return [lane for kind in kinds for lane in kind]


def _same_code(a: Lane, b: Lane) -> bool:
    """Return whether two lanes run the same code on tensors of the same form: then they can be stacked."""
    same = (a.trial.method, a.trial.config, a.trial.layer_settings) == (
        b.trial.method,
        b.trial.config,
        b.trial.layer_settings,
    )
    return same and type(a.method) is type(b.method)


def _alike(lanes: Sequence[Lane], name: str) -> list[list[Lane]]:
    """Return neighbouring lanes grouped so that the modules of each group at this layer can be stacked."""
    groups: list[list[Lane]] = []
    for lane in lanes:
        module = lane.trained()[name]
        first = groups[-1][0].trained()[name] if groups else None
        # Wholly trained modules are alike whatever the method; adapters need the same method and configuration.
        fits = first is not None and is_alike(first, module)
        if fits and (not isinstance(module, Adapter) or _same_code(groups[-1][0], lane)):
            groups[-1].append(lane)
        else:
            groups.append([lane])
    return groups


class Watch(Protocol):
    """Whoever wants to know how training goes."""

    def progress(self, lane: Lane, step: int, metrics: Mapping[str, float]) -> None:
        """Take a lane's metrics after an update."""

    def finished(self, lane: Lane) -> None:
        """Take a lane that trained to its end, or stopped with ``lane.error``."""


def train(base: Base, lanes: Sequence[Lane], watch: Watch, compiled: bool = False) -> None:
    """Train lanes together to their ends. Out of memory, each half goes on by itself, from the same step."""
    waiting = [list(lanes)]
    while waiting:
        group = waiting.pop()
        try:
            _train_together(base, group, watch, compiled)
        except torch.OutOfMemoryError as error:
            running = [lane for lane in group if lane.done < lane.steps and lane.error is None]
            for lane in running:
                lane.leave()
            if base.device.type == "cuda":
                torch.cuda.empty_cache()
            if len(running) == 1:
                running[0].error = error
                watch.finished(running[0])
            else:
                middle = len(running) // 2
                waiting += [running[middle:], running[:middle]]


def _train_together(base: Base, lanes: Sequence[Lane], watch: Watch, compiled: bool) -> None:
    pack: Pack | None = Pack(base, lanes, compiled)
    since: list[Tensor] = []  # losses since the last look, still on the device
    start = time.perf_counter()
    while pack is not None:
        since.append(pack.step())
        lane = pack.lanes[0]
        at_evaluation = lane.done in lane.recipe.evaluate_at
        ends = [each for each in pack.lanes if each.done == each.steps]
        if not (ends or at_evaluation or lane.done % _interval(lane.steps) == 0):
            continue
        losses = torch.stack(since).double().cpu()  # the one place that waits for the device
        alive = [each for each in pack.lanes if each.error is None]
        seconds = (time.perf_counter() - start) / len(alive)
        gone: list[Lane] = []
        for number, each in enumerate(pack.lanes):
            if each.error is not None:
                continue
            each.train_seconds += seconds
            each.pack_lanes, each.compiled = max(each.pack_lanes, len(alive)), pack.compiled
            if not torch.isfinite(losses[:, number]).all():
                place = int((~torch.isfinite(losses[:, number])).nonzero()[0])
                step = each.done - len(since) + place + 1
                each.error = TrialDivergedError(f"the training loss became {losses[place, number]} at step {step}")
                gone.append(each)
                continue
            rate = each.rates[0] * each.multipliers[each.done - 1]
            metrics = {"train/loss": float(losses[-1, number]), "train/learning_rate": rate}
            if at_evaluation and each not in ends:
                metrics |= _evaluate(base, each, "validation").metrics_present()
            each.history.append({"step": each.done, "metrics": metrics})
            watch.progress(each, each.done, metrics)
        for each in ends:
            if each.error is None:
                try:
                    each.evaluation = _evaluate(base, each, "test" if each.trial.purpose == "report" else "validation")
                    each.history[-1]["metrics"] |= each.evaluation.metrics_present()
                except Exception as error:  # noqa: BLE001 - a failing evaluation is that trial's result
                    each.error = error
                gone.append(each)
        for each in gone:
            watch.finished(each)
        # A pack of another size must be compiled again, so there a few diverged lanes are carried along, unheeded.
        few = 2 * (len(alive) - len(gone)) >= len(pack.lanes)
        if gone and (ends or not (pack.compiled and few)):
            pack = pack.without([each for each in pack.lanes if each.error is not None or each in gone])
        since, start = [], time.perf_counter()


def _evaluate(base: Base, lane: Lane, split: str) -> Evaluation:
    start = time.perf_counter()
    with evaluating(base, lane) as model:
        result = base.task.evaluate(model, lane.context, lane.data.splits[split])
    lane.evaluate_seconds += time.perf_counter() - start
    return result


def _interval(steps: int) -> int:
    """Return after how many updates to look at the losses: about a hundred looks per trial."""
    return max(1, steps // 100)
