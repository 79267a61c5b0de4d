"""The layers of a base model: which a trial may adapt, in which places they stand, and what is left out, and why.

A layer counts if it *behaves* as a linear one, whatever its class, and if a gradient comes through it: what is never
called cannot train. All of this is known without weights, so that a plan counts what will train.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from harness.engine.probe import strided_values, trainable
from harness.errors import UsageError

STACKED = "that are no layers, but many matrices in one tensor"


@dataclass(frozen=True)
class LeftOut:
    """Weights that get no adapter.

    Attributes:
        why: For people.
        names: Of the layers, or of tensors that are no layer.
        parameters: How many they have.
    """

    why: str
    names: tuple[str, ...]
    parameters: int

    def __str__(self) -> str:
        """Return one line: names of all layers of a kind as one, with the blocks' numbers left out."""
        kinds = dict.fromkeys(".".join("*" if part.isdigit() else part for part in n.split(".")) for n in self.names)
        some = ", ".join(list(kinds)[:3]) + (", ..." if len(kinds) > 3 else "")
        return f"{self.why}: {some} ({len(self.names)}, {self.parameters:,} parameters)"


@dataclass(frozen=True)
class Layers:
    """The linear layers of a model.

    Attributes:
        shapes: ``{name: (in, out)}`` of every one that may be adapted, in the model's order.
        places: ``{name: names}`` of the places where the same weight stands, its own name first. A weight that several
            places share has one adapter, which works in all of them.
        left_out: What gets no adapter though it multiplies by a matrix, and why.
        has_stacked_experts: Whether matrices of many experts stand in one tensor.
    """

    shapes: Mapping[str, tuple[int, int]]
    places: Mapping[str, tuple[str, ...]]
    left_out: tuple[LeftOut, ...]
    has_stacked_experts: bool = False


def linear_layers(model: nn.Module, trains: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return ``{name: (in, out)}`` of every linear layer that may be adapted, in the model's order."""
    return dict(find_layers(model, trains).shapes)


def find_layers(model: nn.Module, trains: Sequence[str]) -> Layers:
    """Return the linear layers of a model.

    Args:
        model: The base model, possibly on the meta device.
        trains: Patterns of modules that train whole; their layers get no adapter. Nor does the output head: a language
            model's output embeddings, or all that another model has outside of its body.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    has_body = head is None and getattr(model, "base_model", model) is not model
    body = f"{model.base_model_prefix}." if has_body else ""
    whole = trained_modules(model, trains)

    def may_be_adapted(name: str, module: nn.Module) -> bool:
        is_inside = name.startswith(body) and not any(name == each or name.startswith(f"{each}.") for each in whole)
        return is_inside and module is not head

    reached = trainable(model) if hasattr(model, "config") else None
    shapes: dict[str, tuple[int, int]] = {}
    places: dict[str, tuple[str, ...]] = {}
    reasons: dict[str, list[tuple[str, int]]] = {}
    for owners in _owners(model):
        linears = {name: module for name, module in owners.items() if linear_shape(module) is not None}
        name, module = next(iter(linears.items()), ("", model))
        if not linears or not may_be_adapted(name, module):
            continue
        others = [each for each in owners if each not in linears or not may_be_adapted(each, linears[each])]
        if reached is not None and not reached.intersection(linears):
            why = "that the output does not depend on by any gradient"
        elif others:
            why = f"that share their weight with {others[0]}, which gets none"
        elif len({id(getattr(each, "bias", None)) for each in linears.values()}) > 1:
            why = "that share one weight and have biases of their own"
        else:
            shapes[name], places[name] = cast(tuple[int, int], linear_shape(module)), tuple(linears)
            continue
        reasons.setdefault(why, []).append((name, sum(p.numel() for p in module.parameters())))
    for name, count in _stacked_matrices(model):
        reasons.setdefault(STACKED, []).append((name, count))
    left_out = [
        LeftOut(why, tuple(name for name, _ in found), sum(count for _, count in found))
        for why, found in reasons.items()
    ]
    return Layers(shapes, places, tuple(left_out), STACKED in reasons)


def _owners(model: nn.Module) -> Iterator[dict[str, nn.Module]]:
    """Yield, for every weight, the modules that hold it, by all of their names, in the model's order."""
    found: dict[int, dict[str, nn.Module]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        weight = module._parameters.get("weight")
        if weight is not None and weight.ndim == 2:
            found.setdefault(id(weight), {})[name] = module
    yield from found.values()


def _stacked_matrices(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield the name and size of every parameter that holds several matrices, such as those of all experts.

    The kernels of convolutions are none.
    """
    for name, module in model.named_modules():
        is_convolution = isinstance(module, nn.modules.conv._ConvNd)
        if is_convolution:
            continue
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 3 and min(parameter.shape) > 1:
                yield f"{name}.{key}", parameter.numel()


def set_submodule(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module at a place of the model."""
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, module)


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """Return (in-features, out-features) of a module that computes ``x W^T + b`` or ``x W + b``, else ``None``."""
    form = _form(module)
    if form is None:
        return None
    rows, columns = cast(Tensor, module.weight).shape
    return (int(rows), int(columns)) if form == "transposed" else (int(columns), int(rows))


def present_as_linear(module: nn.Module) -> nn.Linear:
    """Return a linear layer of any kind as an ``nn.Linear`` over the same storage, weight (O, I), bias included."""
    if isinstance(module, nn.Linear):
        return module
    weight, bias = cast(Tensor, module.weight), cast("Tensor | None", getattr(module, "bias", None))
    weight = weight.detach().T if _form(module) == "transposed" else weight.detach()
    with torch.device("meta"):
        view = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    view.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        view.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return view


_forms: dict[tuple[Any, ...], str | None] = {}  # of classes that spell their product out, by shape


def _form(module: nn.Module) -> str | None:
    """Return whether a module is a linear layer with a ``plain`` weight (O, I) or a ``transposed`` one; else ``None``.

    Found by trying: a class of its own may be linear, as Falcon's and GPT-2's are, and a subclass of ``nn.Linear`` may
    compute something else with its weight, as routers of some mixtures of experts do.
    """
    if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
        return "plain"
    weight, parameters = module._parameters.get("weight"), dict(module._parameters)
    bias = parameters.get("bias")
    if weight is None or weight.ndim != 2 or set(parameters) - {"weight", "bias"} or module._modules:
        return None
    settings = tuple(sorted((k, v) for k, v in vars(module).items() if isinstance(v, bool | int | float | str)))
    key = (type(module), tuple(weight.shape), bias is None, settings)
    if key not in _forms:
        _forms[key] = _try(module, weight, bias)
    return _forms[key]


@torch.no_grad()
def _try(module: nn.Module, weight: Tensor, bias: Tensor | None) -> str | None:
    generator = torch.Generator().manual_seed(0)
    twin = copy.copy(module)
    w = nn.Parameter(strided_values(weight.shape, generator), requires_grad=False)
    b = None if bias is None else nn.Parameter(strided_values(bias.shape, generator), requires_grad=False)
    twin._parameters = {"weight": w} if "bias" not in module._parameters else {"weight": w, "bias": b}
    for form, matrix in (("plain", w), ("transposed", w.T)):
        if b is not None and len(b) != matrix.shape[0]:
            continue
        x = torch.randn(2, 3, matrix.shape[1], generator=generator)
        try:  # first: a table of tokens refuses numbers at once, and its product would be the largest of the model
            found = twin(x)
        except Exception:  # noqa: BLE001, S112 - a stranger's module that takes something else is not linear
            continue
        if not isinstance(found, Tensor) or found.shape != (2, 3, matrix.shape[0]):
            continue
        if torch.allclose(found, linear(x, matrix, b), rtol=1e-3, atol=1e-5):
            return form
    return None


def select_layers(
    layers: Mapping[str, tuple[int, int]], targets: Sequence[str], each_must_match: bool = False
) -> dict[str, tuple[int, int]]:
    """Return the layers that match a pattern.

    Args:
        layers: From ``linear_layers``.
        targets: Shell-style patterns, matched against the full dotted name or its last part; empty: every layer.
        each_must_match: Whether every single pattern must find something (a user's), or just one of them (a task's,
            which lists the names that different models use).

    Raises:
        UsageError: Nothing matches; the message lists the names there are.
    """
    if not layers:
        raise UsageError(
            "the model has no linear layer that an adapter could work in: no module multiplies by a matrix and does "
            "nothing else; take another model"
        )
    known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in layers})) or "none"
    for pattern in targets if each_must_match else ():
        if not any(matches(name, pattern) for name in layers):
            raise UsageError(f"--targets {pattern!r} matches no linear layer of the model; layers end in: {known}")
    chosen = {name: shape for name, shape in layers.items() if not targets or any(matches(name, p) for p in targets)}
    if not chosen:
        raise UsageError(
            f"no linear layer matches targets {', '.join(targets)}; layers end in: {known}; name some with --targets"
        )
    return chosen


def stacked_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of which a model is a stack, of one class or several; none where it is not."""
    return _largest(_stacks(model))


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of one class of which a model is a stack; none where it is not."""
    return _largest(blocks for blocks in _stacks(model) if len({type(block) for block in blocks}) == 1)


def _stacks(model: nn.Module) -> Iterator[list[nn.Module]]:
    yield from (list(each) for each in model.modules() if isinstance(each, nn.ModuleList) and len(each) > 1)


def _largest(stacks: Iterable[list[nn.Module]]) -> list[nn.Module]:
    return max(stacks, key=lambda blocks: sum(p.numel() for block in blocks for p in block.parameters()), default=[])


def trained_modules(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Return names of the outermost modules that match any of a task's ``trains`` patterns."""
    names = [name for name, _ in model.named_modules() if name and any(matches(name, p) for p in patterns)]
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


def matches(name: str, pattern: str) -> bool:
    """Return whether a dotted name, or its last part, matches a shell-style pattern."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name.rsplit(".", 1)[-1], pattern)
