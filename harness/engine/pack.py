"""Packs: lanes that train together over one resident model. A trial by itself is a pack of one lane.

What is not here: how modules of several lanes run as one (``slots``), evaluation and the end of lanes (``training``).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from harness.contract.method import Adapter, Method, StepInfo
from harness.engine.batch import GPU_MULTIPLE, Batch
from harness.engine.capture import capture
from harness.engine.compiling import compiling
from harness.engine.lane import Lane
from harness.engine.losses import lane_losses
from harness.engine.resident import Base
from harness.engine.slots import Leaves, Stack, is_alike
from harness.errors import HarnessError

logger = logging.getLogger(__name__)


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
        if self.lanes[0].private is not None:
            self._bind_private(self.lanes[0])
        else:
            self._bind()
        self._acting = [lane for lane in self.lanes if type(lane.method).after_step is not Method.after_step]
        self._dropouts = [each for lane in self.lanes for each in lane.dropouts if each.p]
        for lane in self.lanes:
            micro_batches = -(-lane.recipe.batch_size // lane.recipe.rows_at_once)
            for dropout in lane.dropouts:
                if dropout.p:
                    dropout.step.fill_(lane.done * micro_batches)
        self._rates = self._bind_rates()
        self._stream = torch.cuda.Stream(base.device) if base.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._graphs: dict[tuple[Any, ...], _Graph | _Eager] = {}
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._is_midway = False  # some lanes have done an update, and others perhaps not

    def _bind(self) -> None:
        names = dict.fromkeys(name for lane in self.lanes for name in lane.trained())
        for name in names:
            parts: list[tuple[Stack, int]] = []
            for group in _alike(self.lanes, name):
                parts.append((Stack([lane.trained()[name] for lane in group], self.leaves), len(group)))
            self.parts[name] = tuple(parts)

    def _bind_private(self, lane: Lane) -> None:
        """A private model's own parameters are the leaves; in half precision the masters are apart."""
        self.model = cast(nn.Module, lane.private)
        live = dict(self.model.named_parameters())
        for name, master in lane.masters.items():
            self.leaves.parameter([master], exact=live[name] is master, leaf=live[name])

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
        self._is_midway = False
        try:
            with compiling(self.compiled):
                losses = self._step_on_gpu(batches) if on_gpu else self._step(batches)
            self._is_midway = True
            for each in self.lanes:
                each.train_tokens += sum(len(row.ids) for row in each.rows())
                each.advance()
            self._act()
        except torch.OutOfMemoryError as error:
            if self._is_midway and len(self.lanes) > 1:
                raise HarnessError(f"out of memory with a step half done, so it cannot be repeated: {error}") from error
            raise
        finally:
            self.base.clear()
        return losses

    @torch.no_grad()
    def _act(self) -> None:
        """Let the methods act after a step."""
        for each in (lane for lane in self._acting if lane.error is None):
            each.method.after_step(StepInfo(each.done, each.steps, each.adapters, each.optimizer, each.generator))
        if self._acting:
            self.leaves.values_down()

    def _step_on_gpu(self, batches: Sequence[Batch]) -> Tensor:
        assert self._stream is not None
        form = tuple(batch.shape() for batch in batches)
        outside = torch.cuda.current_stream(self.base.device)
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            self._seen[form] += 1
            if self._seen[form] <= WARM_STEPS or (form not in self._graphs and len(self._graphs) == MOST_GRAPHS):
                losses = self._step([batch.to(self.base.device) for batch in batches])
            else:
                if form not in self._graphs:
                    self._graphs[form] = self._capture(batches)
                losses = self._graphs[form].replay(batches)
        outside.wait_stream(self._stream)
        return losses

    def _capture(self, batches: Sequence[Batch]) -> _Graph | _Eager:
        """Return the captured step; where something in it cannot be captured, the ordinary step, and say so."""
        assert self._stream is not None
        generator = torch.cuda.default_generators[self.base.device.index or 0]
        try:
            acting = [parameter for lane in self._acting for parameter in lane.parameters()]
            return _Graph(self._step, batches, self.base.device, self._stream, acting)
        except torch.OutOfMemoryError:
            self._is_midway = False  # capturing computes nothing
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
        self._is_midway = True
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
            losses = lane_losses(self.model, self.base.task.model_kind, batch)
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


WARM_STEPS = 1  # ordinary steps of a form before it is captured
MOST_GRAPHS = 32  # per pack; batches of further forms run uncaptured


class _Graph:
    """One captured step: fixed input tensors, and the kernels that a step launches.

    Args:
        step: What to capture.
        batches: Of the form to capture.
        device: Where it runs.
        stream: Of the pack; everything of a pack runs on it.
        parameters: Whose gradients are read between steps.
    """

    def __init__(
        self,
        step: Callable[[Sequence[Batch]], Tensor],
        batches: Sequence[Batch],
        device: torch.device,
        stream: torch.cuda.Stream,
        parameters: Sequence[nn.Parameter] = (),
    ) -> None:
        self.inputs = [batch.to(device) for batch in batches]
        self.graph, self.losses = capture(lambda: step(self.inputs), stream)
        self.gradients = [(parameter, parameter.grad) for parameter in parameters]

    def replay(self, batches: Sequence[Batch]) -> Tensor:
        """Run the step on other batches of the same form; return a copy of the losses."""
        for old, new in zip(self.inputs, batches, strict=True):
            for name, target in vars(old).items():
                if isinstance(target, Tensor):
                    target.copy_(getattr(new, name).pin_memory(), non_blocking=True)
        self.graph.replay()
        for parameter, gradient in self.gradients:  # steps of other forms left theirs there
            parameter.grad = gradient
        return self.losses.clone()


class _Eager:
    """A step that cannot be captured."""

    def __init__(self, step: Callable[[Sequence[Batch]], Tensor], device: torch.device) -> None:
        self.step, self.device = step, device

    def replay(self, batches: Sequence[Batch]) -> Tensor:
        """Run the step."""
        return self.step([batch.to(self.device) for batch in batches])


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
