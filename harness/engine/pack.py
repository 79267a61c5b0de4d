"""Packs: lanes that train together over one resident model. A trial by itself is a pack of one lane.

What is not here: how modules of several lanes run as one (``slots``), capturing steps on a GPU (``replay``), evaluation
and the end of lanes (``training``).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import chain
from typing import cast

import torch
from torch import Tensor, nn

from harness.contract.adapter import Adapter
from harness.contract.method import Method, StepInfo
from harness.engine.batch import Batch, Row, micro_batches, size_of
from harness.engine.compiling import compiling
from harness.engine.forms import Forms, plan, together
from harness.engine.lane import Lane
from harness.engine.losses import lane_losses
from harness.engine.replay import Form, Replay, form_of
from harness.engine.resident import Base, recompute
from harness.engine.slots import Leaves, Stack, is_alike
from harness.errors import HarnessError

FORESEEN = 8_192  # rows of a lane whose lengths decide the forms


class HalfDoneError(torch.OutOfMemoryError):
    """A trial alone ran out of memory between its optimizer's updates: the step can be neither repeated nor skipped."""


class Pack:
    """Lanes that train together. ``step`` is one update of each; on a GPU it is captured and replayed.

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
            # As they are now: fewer rows at once than before count further, so that no mask comes twice.
            micro_batches = -(-lane.recipe.batch_size // lane.rows_at_once)
            for dropout in lane.dropouts:
                if dropout.p:
                    dropout.step.fill_(lane.done * micro_batches)
        self._rates = self._bind_rates()
        self._forms: Forms | None = None
        self._met: set[Form] = set()
        self._replay: Replay | None = None
        self._is_midway = False  # some lanes have done an update, and others perhaps not
        self._is_reached = False  # every lane's adapters have a gradient

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
        """Do one update of every lane; return losses before it and gradients' norms, (2, K), on the device."""
        lane = self.lanes[0]
        rows = [each.rows() for each in self.lanes]
        self._is_midway = False
        self._enter()
        try:
            with compiling(self.compiled):
                if self._forms is None:
                    self._prepare()
                assert self._forms is not None
                batches = lane.collate(rows, self._forms)
                self._set_rates(lane.done)
                losses = self._uncaptured(batches) if self._replay is None else self._replay(batches)
            self._is_midway = True
            padded = sum(batch.input_ids.numel() for batch in batches) // len(self.lanes)
            self._met |= {form_of(batches)} if self._forms.multiple > 1 else set()
            for each in self.lanes:
                each.forms = max(each.forms, len(self._met))
                each.train_tokens += sum(len(row.ids) for row in each.rows())
                each.padded_tokens += padded
                each.advance()
            self._act()
        except torch.OutOfMemoryError as error:
            if not self._is_midway:
                raise
            message = f"out of memory with a step half done, so it cannot be repeated: {error}"
            raise (HalfDoneError(message) if len(self.lanes) == 1 else HarnessError(message)) from error
        finally:
            self.base.clear()
        return losses

    def _enter(self) -> None:
        """Put the lanes' modules in their places, to train."""
        self.base.forget()  # training wants the memory
        for each in self.lanes:
            for adapter in each.adapters.values():
                adapter.train()
            for module in each.modules.values():
                module.eval()  # dropout in it would draw from no trial's own generator
        for name, parts in self.parts.items():
            self.base.slots[name].parts = parts
        recompute(self.model, self.base.recomputes or any(each.recomputes for each in self.lanes))

    def _prepare(self) -> None:
        """Choose the forms of batches; on a GPU capture a step of each."""
        updates, self._forms = foresee(self.base, self.lanes)
        if self.base.device.type == "cuda" and self.base.ranks.count == 1:  # what ranks exchange cannot be captured
            self._capture(updates)

    def _capture(self, updates: Sequence[Sequence[Sequence[Row]]]) -> None:
        """From now on run captured steps; those of the forms that the next updates need are captured here."""
        assert self._forms is not None
        self._initialise_optimizers()
        names = ", ".join(dict.fromkeys(lane.trial.method for lane in self.lanes))
        read = [parameter for lane in self._acting for parameter in lane.parameters()]
        self._replay = Replay(self._step, self._rehearse, self.base.device, self.compiled, read, names)
        foreseen = [self.lanes[0].collate(updates[each], self._forms) for each in self._forms.examples.values()]
        self._replay.prepare({form_of(batches): batches for batches in foreseen})

    def _initialise_optimizers(self) -> None:
        """Make the optimizers' state, needed before a step is captured, by an update that changes nothing."""
        for lane in self.lanes:
            parameters = [p for p in lane.parameters() if p not in lane.optimizer.state]
            if not parameters:
                continue
            gradients = [p.grad for p in lane.parameters()]
            rates = [group["lr"] for group in lane.optimizer.param_groups]
            for parameter in lane.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter in set(parameters) else None
            for group in lane.optimizer.param_groups:
                group["lr"] = torch.zeros((), device=self.base.device)
            lane.optimizer.step()
            for group, rate in zip(lane.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            for parameter in parameters:
                lane.optimizer.state[parameter]["step"].zero_()
            for parameter, gradient in zip(lane.parameters(), gradients, strict=True):
                parameter.grad = gradient

    def _rehearse(self, batches: Sequence[Batch]) -> None:
        """Run the passes of a step forward and backward, and forget them: kernels load, blocks compile."""
        steps = [dropout.step.clone() for dropout in self._dropouts]
        self._gradients(batches)
        self.leaves.drop_gradients()
        for dropout, step in zip(self._dropouts, steps, strict=True):
            dropout.step.copy_(step)

    def count(self, counter: AbstractContextManager[object]) -> None:
        """Run the passes of the next step, on an uncaptured way and without an update, within a context that counts."""
        self._enter()
        try:
            with compiling(False):
                if self._forms is None:
                    self._prepare()
                assert self._forms is not None
                batches = self.lanes[0].collate([each.rows() for each in self.lanes], self._forms)
                with counter:
                    self._rehearse([batch.to(self.base.device) for batch in batches])
        finally:
            self.base.clear()

    @torch.no_grad()
    def _act(self) -> None:
        """Let the methods act after a step."""
        for each in (lane for lane in self._acting if lane.error is None):
            each.method.after_step(StepInfo(each.done, each.steps, each.adapters, each.optimizer, each.generator))
        if self._acting:
            self.leaves.values_down()

    def _set_rates(self, done: int) -> None:
        if self._rates is not None:
            now, table = self._rates
            now.copy_(table[done])
            return
        for lane in self.lanes:
            for group, rate in zip(lane.optimizer.param_groups, lane.rates, strict=True):
                group["lr"] = rate * lane.multipliers[done]

    def _uncaptured(self, batches: Sequence[Batch]) -> Tensor:
        """Do a step from batches on the host."""
        on_gpu = self.base.device.type == "cuda"
        return self._step([batch.to(self.base.device) for batch in batches] if on_gpu else batches)

    def _step(self, batches: Sequence[Batch]) -> Tensor:
        """Do the part of a step that is the same every time: gradients, clipping, optimizers. Waits for nothing."""
        losses = self._gradients(batches)
        self._is_midway = True
        norms = []
        with torch.no_grad():
            for lane in self.lanes:
                gradients = [p.grad for p in lane.parameters() if p.grad is not None]
                norms.append(nn.utils.get_total_norm(gradients, foreach=True).to(losses))
                if lane.recipe.clip_norm:
                    nn.utils.clip_grads_with_norm_(lane.parameters(), lane.recipe.clip_norm, norms[-1], foreach=True)
                lane.optimizer.step()
            self.leaves.values_down()
        return torch.stack([losses, torch.stack(norms)])

    def _gradients(self, batches: Sequence[Batch]) -> Tensor:
        self.leaves.drop_gradients()
        total = torch.zeros(len(self.lanes), device=self.base.device)
        for batch in self.base.ranks.part(batches):
            if batch is not None:
                losses = lane_losses(self.model, self.base.task.model_kind, batch)
                if not losses.requires_grad:
                    raise _unused(self.lanes)
                losses.sum().backward()  # type: ignore[no-untyped-call]
                total += losses.detach()
            for dropout in self._dropouts:
                dropout.advance()
        self._check_reached()
        self.leaves.gradients_up()
        self.base.ranks.add_up(
            chain([total], (p.grad for lane in self.lanes for p in lane.parameters() if p.grad is not None))
        )
        for lane in self.lanes:
            extra = lane.method.extra_loss(lane.adapters)
            if extra is not None:
                extra.backward()  # type: ignore[no-untyped-call]
        return total

    def _check_reached(self) -> None:
        """Refuse lanes whose adapters take no part in the loss: beside others, they would end as if they had trained.

        Asked once. Of ranks, one may have had nothing to do.
        """
        if self._is_reached or self.base.ranks.count > 1:
            return
        unused = [
            lane
            for lane in self.lanes
            if (parameters := [p for each in lane.adapters.values() for p in each.parameters() if p.requires_grad])
            and not self.leaves.are_reached(parameters)
            and lane.method.extra_loss(lane.adapters) is None
        ]
        if unused:
            raise _unused(unused)
        self._is_reached = True

    def close(self) -> None:
        """Let go of captured steps and their memory; another step would capture them anew."""
        self._replay = self._forms = None

    def without(self, gone: Sequence[Lane]) -> Pack | None:
        """Return a pack of the other lanes, at the same step; ``None`` where there is none."""
        for lane in self.lanes:
            lane.leave()
        stay = [lane for lane in self.lanes if lane not in gone]
        return Pack(self.base, stay, self.compiled) if stay else None


def _unused(lanes: Sequence[Lane]) -> HarnessError:
    names = ", ".join(dict.fromkeys(lane.trial.method for lane in lanes))
    return HarnessError(
        f"method {names}: no adapter's parameters take part in the loss, so nothing would train; forward() must use "
        f"them, and neither detach() them nor leave PyTorch (`harness check {lanes[0].trial.method}`)"
    )


def foresee(base: Base, lanes: Sequence[Lane]) -> tuple[list[list[list[Row]]], Forms]:
    """Return the lanes' rows of the next updates, as far as they can be known, and the forms of their batches."""
    longest_flat = base.longest_flat if all(lane.lays_flat() for lane in lanes) else 0
    if base.device.type != "cuda" and not longest_flat:
        return [], Forms()
    updates = _upcoming(lanes)
    lengths = [len(row.ids) for rows in updates for each in rows for row in each]
    left = 1 if any(lane.holds_rows for lane in lanes) else max(lane.steps - lane.done for lane in lanes)
    if len(updates) < left:
        most = int(lanes[0].recipe.max_length)
        lengths.append(min(most, base.most_tokens or most))
    longest = max(lengths)
    flat = longest <= longest_flat
    if not flat and base.device.type != "cuda":
        return [], Forms()
    size = lanes[0].rows_at_once
    needs = [together(size_of(group, flat) for group in micro_batches(rows, size)) for rows in updates]
    return updates, plan(needs, longest if flat else 0, limit=base.most_tokens or 0)


def _upcoming(lanes: Sequence[Lane]) -> list[list[list[Row]]]:
    """Return every lane's rows of the next updates. Lanes of one seed share theirs."""
    most = max(1, FORESEEN // len(lanes[0].rows()))
    read: dict[tuple[int, int], list[list[Row]]] = {}
    keys = [(id(lane.data), lane.trial.seed) for lane in lanes]
    for key, lane in zip(keys, lanes, strict=True):
        if len(read.get(key, [])) < min(most, lane.steps - lane.done):
            read[key] = list(lane.upcoming(most))
    return [list(each) for each in zip(*(read.get(key, []) for key in keys), strict=False)]


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
