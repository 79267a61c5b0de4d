"""Methods that do not live on linear layers: attached to a model, counted there, and kept apart from the task's head.

What is not here: adapters on layers (``slots``), how what was attached is trained (``build``, ``pack``).
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from harness.contract.method import ADAPTED, Method
from harness.engine.quantised import quantise_layers
from harness.errors import ConfigError


def attach(method: Method, model: nn.Module, layers: Collection[str], generator: torch.Generator) -> nn.Module:
    """Attach a method to a model, which is changed, and return the model to train.

    Args:
        method: Built from the trial's config.
        model: A copy of its own; all of it is frozen first.
        layers: Names of the layers that adapters would sit on.
        generator: What the method draws from.

    Raises:
        ConfigError: The method cannot be used with this model, or marked nothing as trainable.
    """
    model.requires_grad_(False)
    setattr(model, ADAPTED, tuple(layers))
    before = _form(model)
    attached = method.attach(model, generator)
    attached = (model if attached is None else attached).eval()  # what was added too
    if method.traits.trains and not any(each.requires_grad for each in attached.parameters()):
        raise ConfigError(f"method {method.name!r}: attach() marked no parameter as trainable")
    cast(Any, attached)._is_as_before = attached is model and _form(model) == before
    if not is_as_before(attached):
        # The cache of a captured step has room for the text alone, and a prompt may stand before it.
        cast(Any, attached)._can_compile_fullgraph = False
    return attached


def is_as_before(attached: nn.Module) -> bool:
    """Return whether nothing was added to a model: that its own weights train is all that was done to it."""
    return bool(attached._is_as_before)


def count_attached(method: Method, skeleton: nn.Module, layers: Collection[str]) -> int:
    """Return the parameters that a method trains on a model without weights."""
    model = attach(method, copy.deepcopy(skeleton), layers, torch.Generator().manual_seed(0))
    return sum(each.numel() for each in model.parameters() if each.requires_grad)


def check_in_4_bits(
    method: Method, skeleton: nn.Module, layers: Collection[str], places: Mapping[str, Sequence[str]], kind: str
) -> None:
    """Refuse a method that cannot be attached to a base whose weights are kept in 4 bits.

    Args:
        method: Built from the trial's config.
        skeleton: The model without weights.
        layers: Names of the layers that adapters would sit on.
        places: Of every layer in 4 bits, the places where it stands.
        kind: One of ``quantised.KINDS``.

    Raises:
        ConfigError: It trains the weights of such layers, or cannot be used with them.
    """
    model = copy.deepcopy(skeleton)
    weights = {name: cast(nn.Parameter, model.get_submodule(name).weight) for name in places}
    attach(method, model, layers, torch.Generator().manual_seed(0))
    if own := [name for name, weight in weights.items() if weight.requires_grad]:
        more = f" and of {len(own) - 1} other layers" if len(own) > 1 else ""
        raise ConfigError(f"it trains the weight of {own[0]}{more}, and what is kept in 4 bits cannot train")
    model = copy.deepcopy(skeleton)
    quantise_layers(model, places, kind, torch.device("meta"))
    attach(method, model, layers, torch.Generator().manual_seed(0))


def trained_by_task(attached: nn.Module, heads: Mapping[str, nn.Module]) -> frozenset[str]:
    """Let what the task trains besides the method train too, and return its parameters' names in the attached model.

    A method that trains them itself, as one that trains everything does, has them as its own.
    """
    rest = {id(p) for head in heads.values() for p in head.parameters() if not p.requires_grad}
    for head in heads.values():
        head.requires_grad_(True)
    return frozenset(name for name, parameter in attached.named_parameters() if id(parameter) in rest)


def _form(model: nn.Module) -> list[Any]:
    """Return what tells a model from one that computes something else with its weights, or in another way."""
    modules = [
        (name, type(each), len(each._forward_hooks), len(each._forward_pre_hooks), id(vars(each).get("forward")))
        for name, each in model.named_modules()
    ]
    attention = [
        getattr(each.config, "_attn_implementation", "") for each in model.modules() if hasattr(each, "config")
    ]
    return [
        modules,
        attention,
        [name for name, _ in model.named_parameters()],
        [name for name, _ in model.named_buffers()],
    ]
