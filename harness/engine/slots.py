"""Slots: several trials' trainable modules in the places of one resident model's layers.

The frozen model sees one batch, the concatenation of all lanes' batches, in lane order. In the place of every adapted
(or wholly trained) layer sits a *slot*. It runs the frozen layer once and then each lane's own module on that lane's
rows. Lanes whose modules are alike are *stacked*: their parameters become one tensor with a leading lane axis, and
``torch.func.vmap`` runs them as one batched module, whoever wrote it.

Every lane keeps its own module and its own optimizer. Stacking only re-points the storage: a lane's parameter becomes
a view of the stack, its gradient a view of the stack's gradient. So optimizers, clipping and a method's hooks never
know whether they run alone, and a lane can leave a pack at any step.

What is not here: modules as evaluation reads them (``readers``), batches (``batch``), losses (``losses``), steps
(``pack``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast
from weakref import ref

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import linear

from harness.contract.adapter import Adapter, LowRankAdapter
from harness.engine.layers import present_as_linear
from harness.engine.low_rank import Factors, Thin, adapted, is_thin, thin_of
from harness.engine.quantised import QuantisedLinear
from harness.engine.readers import Reader, kept_float32, plain_settings
from harness.errors import HarnessError


class Leaves:
    """The tensors that autograd differentiates, and the parameters that optimizers update.

    In full precision they share storage. In half precision the parameters are float32 masters and the leaves are
    rounded copies: gradients are copied up before the optimizer step and values down after it.
    """

    def __init__(self, compute_dtype: torch.dtype) -> None:
        self.compute_dtype = compute_dtype
        self._known: dict[tuple[int, ...], Tensor] = {}
        self._constants: dict[tuple[Any, ...], tuple[list[ref[Tensor]], list[Tensor], Tensor]] = {}
        self._keep: list[Sequence[Tensor]] = []  # ids in _known stay valid while the tensors live
        self._leaves: list[Tensor] = []
        self._shared: list[tuple[Tensor, Sequence[nn.Parameter]]] = []  # leaves of several lanes, unrounded
        self._rounded: list[Tensor] = []  # leaves that are rounded copies ...
        self._gradients: list[Tensor] = []  # ... and the gradients of their masters
        self._low: list[Tensor] = []
        self._high: list[Tensor] = []

    def parameter(self, lanes: Sequence[nn.Parameter], exact: bool = False, leaf: Tensor | None = None) -> Tensor:
        """Return the leaf for one parameter of K alike lanes: (K, ...), or the parameter's own shape where K is 1.

        Args:
            lanes: Each lane's parameter.
            exact: Whether to compute with it unrounded, whatever the precision.
            leaf: To be the rounded copy, where there has to be one.
        """
        key = tuple(map(id, lanes))
        if key in self._known:  # tied parameters
            return self._known[key]
        alone = len(lanes) == 1
        master = lanes[0].data if alone else torch.stack([each.data for each in lanes])
        for lane, parameter in enumerate(lanes):
            parameter.data = master if alone else master[lane]
        if exact or self._is_exact(master):
            leaf = lanes[0] if alone else master.detach().requires_grad_()
            if not alone:
                self._shared.append((leaf, lanes))
        else:
            leaf = master.to(self.compute_dtype).requires_grad_() if leaf is None else leaf
            gradient = torch.zeros_like(master)
            for lane, parameter in enumerate(lanes):
                parameter.grad = gradient if alone else gradient[lane]
            self._rounded.append(leaf)
            self._gradients.append(gradient)
            self._low.append(leaf.detach())
            self._high.append(master)
        self._leaves.append(leaf)
        self._known[key] = leaf
        self._keep.append(lanes)
        return leaf

    def constant(self, lanes: Sequence[Tensor], store: Callable[[int, Tensor], None], exact: bool = False) -> Tensor:
        """Return what ``forward`` reads for one buffer of K alike lanes, and re-point each lane's with ``store``."""
        key = (exact, *map(id, lanes))
        owners, views, read = self._constants.get(key, ([], [], None))
        if read is None or any(owner() is not each for owner, each in zip(owners, lanes, strict=True)):
            master = lanes[0] if len(lanes) == 1 else torch.stack(list(lanes))
            views = list(lanes) if len(lanes) == 1 else [master[lane] for lane in range(len(lanes))]
            read = master
            if not (exact or not master.is_floating_point() or self._is_exact(master)):
                read = master.to(self.compute_dtype)
                self._low.append(read)
                self._high.append(master)
            # Weak: what was stacked is let go, unless it stands elsewhere too and is met again.
            self._constants[key] = ([ref(each) for each in lanes], views, read)
        for lane, view in enumerate(views if len(lanes) > 1 else []):
            store(lane, view)
        return read

    def _is_exact(self, tensor: Tensor) -> bool:
        return torch.promote_types(tensor.dtype, self.compute_dtype) == self.compute_dtype

    def drop_gradients(self) -> None:
        """Forget the gradients of the last step; autograd then hands over its own tensors instead of adding to ours."""
        for leaf in self._leaves:
            leaf.grad = None

    def are_reached(self, parameters: Sequence[nn.Parameter]) -> bool:
        """Return whether the last backward pass gave any of these a gradient."""
        asked = set(map(id, parameters))
        return any(leaf.grad is not None for key, leaf in self._known.items() if not asked.isdisjoint(key))

    def gradients_up(self) -> None:
        """Give every lane's parameters the gradients of their leaves."""
        for leaf, lanes in self._shared:
            for lane, parameter in enumerate(lanes):
                parameter.grad = None if leaf.grad is None else leaf.grad[lane]
        if self._rounded:
            zero = [g for leaf, g in zip(self._rounded, self._gradients, strict=True) if leaf.grad is None]
            if zero:
                torch._foreach_zero_(zero)
            pairs = [
                (g, leaf.grad) for leaf, g in zip(self._rounded, self._gradients, strict=True) if leaf.grad is not None
            ]
            if pairs:
                torch._foreach_copy_([high for high, _ in pairs], [low for _, low in pairs])

    @torch.no_grad()
    def values_down(self) -> None:
        """Round the parameters into the leaves."""
        if self._low:
            torch._foreach_copy_(self._low, self._high)


class Stack:
    """The modules of K alike lanes at one place of the model, run as one.

    Args:
        modules: One per lane, of the same class and configuration.
        leaves: Where their tensors are gathered.
    """

    def __init__(self, modules: Sequence[nn.Module], leaves: Leaves) -> None:
        self.modules = list(modules)
        self.parameters: dict[str, Tensor] = {}
        self.buffers: dict[str, Tensor] = {}
        exact = kept_float32(modules[0])
        for name, first in modules[0].named_parameters(remove_duplicate=False):
            tensors = [each.get_parameter(name) for each in modules]
            if first.requires_grad:
                self.parameters[name] = leaves.parameter(tensors, name in exact)
            else:
                self.buffers[name] = leaves.constant(tensors, self._point(name), name in exact)
        for name, _ in modules[0].named_buffers(remove_duplicate=False):
            buffers = [each.get_buffer(name) for each in modules]
            self.buffers[name] = leaves.constant(buffers, self._point(name), name in exact)
        half = leaves.compute_dtype not in (torch.float32, torch.float64)
        self._direct = len(modules) == 1 and not half
        self._factors = Factors(cast(LowRankAdapter, modules[0])) if is_thin(modules[0]) else None

    def _point(self, name: str) -> Callable[[int, Tensor], None]:
        """Return a function that replaces lane k's buffer (or frozen parameter) of this name by a view."""
        path, _, leaf = name.rpartition(".")

        def store(lane: int, tensor: Tensor) -> None:
            owner = self.modules[lane].get_submodule(path)
            if leaf in owner._buffers:
                owner._buffers[leaf] = tensor
            else:
                owner.get_parameter(leaf).data = tensor

        return store

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run each lane's module on its rows; inputs (K rows, ...), lanes in order."""
        first = self.modules[0]
        if self._direct:
            return cast(Tensor, first(*inputs))
        tensors = {**self.parameters, **self.buffers}
        if len(self.modules) == 1:
            return cast(Tensor, functional_call(first, tensors, inputs, tie_weights=False))
        rows = tuple(by_lane(each, len(self.modules)) for each in inputs)
        output = vmap(lambda state, *xs: functional_call(first, state, xs, tie_weights=False))(tensors, *rows)
        return cast(Tensor, output).flatten(0, 1)

    def thin(self, first: int) -> Thin | None:
        """Return the lanes' updates where they do nothing but add one of low rank; the first lane's number is given."""
        if self._factors is None:
            return None
        if self._direct:
            return thin_of(self._factors.adapter, first)
        return self._factors.of_lanes({**self.parameters, **self.buffers}, len(self.modules), first)


def by_lane(rows: Tensor, lanes: int) -> Tensor:
    """Return rows (K B, ...) as (K, B, ...)."""
    return rows.reshape(lanes, rows.shape[0] // lanes, *rows.shape[1:])


class Slot(nn.Module):
    """Stands where a layer of the base model was.

    Args:
        frozen: The layer. Attributes that the model's code asks for are taken from it.
    """

    def __init__(self, frozen: nn.Module) -> None:
        super().__init__()
        self.frozen = frozen
        # (stack, lanes in it), in lane order; plain objects, so that the base model's own state is unchanged.
        self.parts: tuple[tuple[Stack | Reader, int], ...] = ()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("frozen"), name)

    def over_lanes(self, *inputs: Tensor, done: frozenset[int] = frozenset()) -> Tensor:
        """Give each part its rows and join the outputs; of the parts that are done the last input is the output."""
        if len(self.parts) == 1:
            return self.parts[0][0](*inputs)
        counts = [count for _, count in self.parts]
        pieces = zip(*(torch.split(by_lane(each, sum(counts)), counts) for each in inputs), strict=True)
        outputs = []
        for number, ((stack, _), piece) in enumerate(zip(self.parts, pieces, strict=True)):
            flat = [each.flatten(0, 1) for each in piece]
            outputs.append(flat[-1] if number in done else stack(*flat))
        return torch.cat(outputs)


class LinearSlot(Slot):
    """A frozen linear layer with each lane's adapter beside it."""

    def __init__(self, frozen: nn.Module) -> None:
        super().__init__(frozen)
        # In a tuple: not a second registration of the weight.
        self.linear = (frozen if isinstance(frozen, QuantisedLinear) else present_as_linear(frozen),)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``adapter(x, W x) + bias``; the bias last, so that no adapter scales it."""
        layer = self.linear[0]
        if not self.parts and not isinstance(layer, QuantisedLinear):
            return linear(x, layer.weight, layer.bias)
        thin: dict[int, Thin] = {}
        if isinstance(layer, QuantisedLinear):
            output = layer.multiply(x)
        else:
            thin = self._thin()
            output = adapted(x, layer.weight, sum(count for _, count in self.parts), list(thin.values()))
        if len(thin) < len(self.parts):
            output = self.over_lanes(x, output, done=frozenset(thin))
        return output if layer.bias is None else output + layer.bias

    def _thin(self) -> dict[int, Thin]:
        """Return the low-rank updates among the parts, by the part's number."""
        found: dict[int, Thin] = {}
        first = 0
        for number, (part, count) in enumerate(self.parts):
            thin = part.thin(first) if isinstance(part, Stack | Reader) else None
            if thin is not None:
                found[number] = thin
            first += count
        return found


class ModuleSlot(Slot):
    """A module of which each lane trains its own copy."""

    def forward(self, x: Tensor, *rest: Any, **keywords: Any) -> Any:
        """Run each lane's copy on its rows.

        Raises:
            HarnessError: The module takes more than one tensor, and only the first could be given to each lane.
        """
        if not self.parts:
            return self.frozen(x, *rest, **keywords)
        if any(each is not None for each in (*rest, *keywords.values())):
            raise HarnessError(
                f"a {type(self.frozen).__name__} takes more than one input, so it cannot train whole beside others; "
                "leave it out of the task's `trains`"
            )
        return self.over_lanes(x)


def slots(model: nn.Module) -> dict[str, Slot]:
    """Return the model's slots by the name of the layer whose place they took."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Slot)}


def reading(model: nn.Module) -> Reader | None:
    """Return what reads the first module of the one trial that is evaluated; ``None`` where no slot has one."""
    parts = next((slot.parts for slot in slots(model).values() if slot.parts), ())
    return next((part for part, _ in parts if isinstance(part, Reader)), None)


@contextmanager
def pretrained(model: nn.Module) -> Iterator[None]:
    """Run with every lane taken out of the model, then put them back."""
    before = {slot: slot.parts for slot in slots(model).values()}
    for slot in before:
        slot.parts = ()
    try:
        yield
    finally:
        for slot, parts in before.items():
            slot.parts = parts


def delta_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return ``{layer: effective minus pretrained weight (O, I)}`` of the one trial whose adapters are active.

    Empty for a model without adapters, such as a fully fine-tuned one.
    """
    deltas: dict[str, Tensor] = {}
    for name, slot in slots(model).items():
        if isinstance(slot, LinearSlot) and slot.parts:
            ((stack, _),) = slot.parts
            (adapter,) = stack.modules
            deltas[name] = cast(Adapter, adapter).delta_weight().detach()
    return deltas


def is_alike(a: nn.Module, b: nn.Module) -> bool:
    """Return whether two modules can be stacked: same class and plain numbers, tensors of the same form."""

    def form(module: nn.Module) -> list[tuple[Any, ...]]:
        parameters = [
            (n, p.shape, p.dtype, p.requires_grad) for n, p in module.named_parameters(remove_duplicate=False)
        ]
        buffers = [(n, b.shape, b.dtype) for n, b in module.named_buffers(remove_duplicate=False)]
        return [*parameters, *buffers, *plain_settings(module)]

    same_kind = type(a) is type(b) and (not isinstance(a, Adapter) or a.in_features == cast(Adapter, b).in_features)
    return same_kind and form(a) == form(b)
