"""What a model does with a text, found without its weights. A plan may not load them, and has to know.

    called     which modules a text reaches: run on the meta device, where tensors have shapes and no values
    stand_in   a model of the same code and sizes with made-up weights, which take no memory: it computes

What is not here: what is concluded from it (``layers``, ``behaviour``).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
TOKENS = 8  # of the text that a probe runs on
MOST_PARAMETERS = 1_000_000_000  # of a stand-in; of a larger model it has the first blocks only
FIRST_BLOCKS = 2


def called(model: nn.Module, tokens: int = TOKENS) -> set[str] | None:
    """Return the names of the modules that a text reaches, or ``None`` where the model cannot run without values.

    A model's code sometimes asks for a value, e.g. whether any token was sent to an expert. There is none, so the
    answer is the one that leaves nothing out: true, and all.
    """
    model = on_meta(model)
    found: set[str] = set()
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    hooks = [
        module.register_forward_pre_hook(lambda _, __, each=each: found.update(each)) for module, each in names.items()
    ]
    try:
        with torch.device("meta"), torch.no_grad(), _Answers():  # type: ignore[no-untyped-call]
            ids = torch.zeros(1, tokens, dtype=torch.long)
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except Exception:  # noqa: BLE001 - a stranger's code, which may do anything with tensors that hold nothing
        return None
    finally:
        for hook in hooks:
            hook.remove()
    return found


def on_meta(model: nn.Module) -> nn.Module:
    """Return a model of the same configuration without weights: the model itself, where it has none."""
    if all(parameter.is_meta for parameter in model.parameters()):
        return model.eval()
    return _build(type(model), cast(Any, model).config)


def _build(kind: type, config: Any) -> nn.Module:
    config = copy.deepcopy(config)
    config.use_cache = False
    with torch.device("meta"):
        return cast(nn.Module, kind(config)).eval()


class _Answers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers what a model asks of values that are not there."""

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        answer = ANSWERS.get(function)
        if answer is not None:
            return answer(*args)
        if function is aten.index.Tensor:
            return function(args[0], _spelt_out(args[1]))
        return function(*args, **(kwargs or {}))


def _one(tensor: Tensor) -> bool | int | float:
    """Return the value of a tensor of one element: true, the first index, or one."""
    return True if tensor.dtype is torch.bool else 1.0 if tensor.is_floating_point() else 0


def _everywhere(tensor: Tensor) -> Tensor:
    """Return the places of all elements, (N, dimensions)."""
    return torch.zeros(tensor.numel(), tensor.ndim, dtype=torch.long, device="meta")


def _spelt_out(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return indices with the places that a mask selects, all of them, instead of the mask."""
    result: list[Tensor | None] = []
    for each in indices:
        is_mask = each is not None and each.dtype is torch.bool
        result += list(_everywhere(each).unbind(1)) if is_mask and each is not None else [each]
    return result


def _selected(tensor: Tensor, mask: Tensor) -> Tensor:
    return tensor.new_empty(torch.where(mask, tensor, tensor).numel())


def _grouped(a: Tensor, b: Tensor, *_: object) -> Tensor:
    """Return the form of a product of groups of rows, (N, I) with (E, I, O); its meta kernel wants bfloat16."""
    return a.new_empty(a.shape[0], b.shape[-1])


ANSWERS: Mapping[Any, Callable[..., Any]] = {
    aten._local_scalar_dense.default: _one,
    aten.equal.default: lambda *_: True,
    aten.is_nonzero.default: lambda *_: True,
    aten.nonzero.default: _everywhere,
    aten.masked_select.default: _selected,
    aten._grouped_mm.default: _grouped,
}


def stand_in(model: nn.Module) -> nn.Module | None:
    """Return a model like this one with made-up weights, in float32 on the CPU, or ``None`` where none can be made.

    Element (i, j) of a weight is number 2 i + j of a short row of random numbers, so that the weight takes no memory
    and still has full rank. Only what does not depend on learned values may be concluded from it.
    """
    config = cast(Any, model).config
    try:
        if sum(parameter.numel() for parameter in model.parameters()) > MOST_PARAMETERS:
            config = _shortened(config)
        twin = _build(type(model), config)
        _fill(twin)
    except Exception:  # noqa: BLE001 - a stranger's code, which does not foresee this
        return None
    return twin


def _shortened(config: Any) -> Any:
    """Return a config of the first blocks only."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = FIRST_BLOCKS
    for name, value in vars(text).items():
        if isinstance(value, list) and "layer" in name and len(value) > FIRST_BLOCKS:
            setattr(text, name, value[:FIRST_BLOCKS])
    return config


def _fill(model: nn.Module) -> None:
    """Give a model from the meta device values: parameters made up, buffers as the model's own code makes them."""
    generator = torch.Generator().manual_seed(0)
    made: dict[nn.Parameter, nn.Parameter] = {}  # shared ones stay shared
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        path, _, leaf = name.rpartition(".")
        if parameter not in made:
            values = strided_values(parameter.shape, generator)
            made[parameter] = nn.Parameter(values + (values.ndim < 2 and leaf == "weight"), requires_grad=False)
            cast(Any, made[parameter])._is_hf_initialized = True  # so that the model's own code leaves it alone
        model.get_submodule(path)._parameters[leaf] = made[parameter]
    for module in model.modules():
        cast(Any, module)._is_hf_initialized = False
        for key, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[key] = torch.zeros(buffer.shape, dtype=buffer.dtype)
    anything = cast(Any, model)
    anything.initialize_weights()
    if hasattr(model, "set_experts_implementation"):
        anything.set_experts_implementation("eager")  # others want weights that are laid out one after the other


def strided_values(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return random values of this shape, of a variance that keeps activations near one, in next to no memory."""
    if len(shape) < 2:
        return 0.1 * torch.randn(*shape, generator=generator)
    strides = list(range(len(shape), 0, -1))
    count = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    row = torch.randn(max(count, 1), generator=generator) / math.sqrt(shape[-1])
    return row.as_strided(tuple(shape), strides)
