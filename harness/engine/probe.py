"""What a model does with a text, found without its weights. A plan may not load them, and has to know.

    trainable  through which modules a gradient comes: run on the meta device, where tensors have shapes and no values
    runs       whether a text of some length passes at all, there
    stand_in   a model of the same code and sizes with made-up weights, which take no memory: it computes

What is not here: what is concluded from it (``layers``, ``behaviour``).
"""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

logger = logging.getLogger(__name__)
aten = torch.ops.aten
TOKENS = 8  # of the text that a probe runs on
FIRST_TOKEN = 8  # no special token of any usual tokenizer
MOST_PARAMETERS = 1_000_000_000  # of a stand-in; of a larger model it has the first blocks only
FIRST_BLOCKS = 2
PADDING = 0  # of a stand-in for a model that names none


def trainable(model: nn.Module) -> frozenset[str] | None:
    """Return the names of the modules whose output the logits depend on, differentiably.

    What is never called has no part in them, nor has what only decides, e.g. which tokens are looked at. ``None``
    where that cannot be found without weights.

    A model's code sometimes asks for a value, e.g. whether any token was sent to an expert. On the meta device there is
    none, so the answer is the one that leaves nothing out: true, and all. Where that is not enough, a stand-in runs.

    Found once for models of one code and one configuration: a sweep asks for each task, a worker for each base.
    """
    key = _likeness(model)
    if key not in _reached:
        _reached[key] = _find_reached(model)
    return _reached[key]


_reached: dict[tuple[Any, ...], frozenset[str] | None] = {}
UNHEEDED = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")  # by a probe


def _likeness(model: nn.Module) -> tuple[Any, ...]:
    """Return what is equal for models that do the same with a text: settings, and the class of every module."""
    config = {key: value for key, value in cast(Any, model).config.to_dict().items() if key not in UNHEEDED}
    modules = ((name, type(each)) for name, each in model.named_modules(remove_duplicate=False))
    return type(model), json.dumps(config, sort_keys=True, default=str), tuple(modules)


def _find_reached(model: nn.Module) -> frozenset[str] | None:
    empty = on_meta(model)
    reached: frozenset[str] | None = None
    try:
        with torch.device("meta"), _Answers():  # type: ignore[no-untyped-call]
            reached = differentiable(empty)
    except Exception:  # a stranger's code, which may do anything with tensors that hold nothing
        logger.debug("%s: not to be run without values", type(model).__name__, exc_info=True)
    speaks = cast(Any, model).get_output_embeddings() is not None
    if reached is not None and speaks:  # every token's output counts
        return reached
    twin = stand_in(empty) if _size(empty) <= MOST_PARAMETERS else None
    if twin is None:
        return reached
    try:
        reached = differentiable(twin) if reached is None else reached
        return reached if speaks else reached - idle(twin)
    except Exception:  # noqa: BLE001 - as above
        return reached


def idle(model: nn.Module) -> frozenset[str]:
    """Return the names of layers that see all of a text and whose weights get a gradient of nothing but zeros.

    A classifier makes its output of few tokens of a text. What its last block does to the others, in vain, looks on the
    meta device like everything else. Nothing is said of a layer that sees some tokens only, as an expert does: another
    text may be sent to it. The tokens differ, since among equal ones attention has no choice and no gradient.
    """
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def mark(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if not isinstance(output, Tensor) or not inputs or not isinstance(inputs[0], Tensor):
            return None
        marked = output + torch.zeros_like(output).requires_grad_()
        if marked.requires_grad:
            calls.append((module, inputs[0].detach(), marked))
        return marked

    hooks = [
        each.register_forward_hook(mark)
        for each in model.modules()
        if (weight := each._parameters.get("weight")) is not None and weight.ndim == 2
    ]
    text = some_text(model)
    try:
        with torch.enable_grad():
            logits = cast(Any, model)(input_ids=text, attention_mask=torch.ones_like(text)).logits
            gradients = torch.autograd.grad(logits.sum(), [each for _, _, each in calls], allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    moves: dict[nn.Module, bool] = {}
    for (module, x, _), gradient in zip(calls, gradients, strict=True):
        moves[module] = moves.get(module, False) or _moves(x, gradient)
    return frozenset(name for name, each in model.named_modules(remove_duplicate=False) if moves.get(each) is False)


def _moves(x: Tensor, gradient: Tensor | None) -> bool:
    """Return whether a layer that read this, and whose output has this gradient, gets one; if in doubt, it does."""
    if x.ndim < 2 or x[..., 0].numel() < TOKENS:
        return True
    if gradient is None:
        return False
    read, wanted = (each.flatten(0, -2).ne(0).any(-1) for each in (x, gradient))
    return read.shape != wanted.shape or bool((read & wanted).any())


def differentiable(model: nn.Module) -> frozenset[str]:
    """Return the names of the modules whose output the logits of a model depend on, differentiably, by running it."""
    outputs: list[tuple[nn.Module, Tensor]] = []

    def mark(module: nn.Module, _: object, output: Any) -> Any:
        """Let the gradient of the module's output be asked for, whether or not anything before it has one."""
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        marked = output + torch.zeros_like(output).requires_grad_()
        if marked.requires_grad:  # not so where the model's code says that nothing here trains
            outputs.append((module, marked))
        return marked

    hooks = [each.register_forward_hook(mark) for each in set(model.modules()) - {model}]
    try:
        with torch.enable_grad():
            logits = _logits(model, TOKENS)
            gradients = torch.autograd.grad(logits.sum(), [output for _, output in outputs], allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    reached = {module for (module, _), gradient in zip(outputs, gradients, strict=True) if gradient is not None}
    return frozenset(name for name, module in model.named_modules(remove_duplicate=False) if module in reached)


def end_token(model: nn.Module) -> int | None:
    """Return the token that ends a text, if the model's configuration names one that it has."""
    config = cast(Any, model).config.get_text_config()
    end, size = getattr(config, "eos_token_id", None), getattr(config, "vocab_size", None)
    return end if isinstance(end, int) and (size is None or end < size) else None


def some_text(model: nn.Module) -> Tensor:
    """Return a text of a few tokens, (1, T), the last of which ends it: some models look for that one."""
    text = torch.arange(FIRST_TOKEN, FIRST_TOKEN + TOKENS, device=next(model.parameters()).device)[None]
    if (end := end_token(model)) is not None:
        text[0, -1] = end
    return text


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def runs(model: nn.Module, tokens: int) -> bool:
    """Return whether a text of so many tokens passes through the model, as far as shapes decide."""
    model = on_meta(model)
    try:
        with torch.device("meta"), torch.no_grad(), _Answers():  # type: ignore[no-untyped-call]
            _logits(model, tokens)
    except Exception:  # noqa: BLE001 - as above
        return False
    return True


def _logits(model: nn.Module, tokens: int) -> Tensor:
    ids = torch.zeros(1, tokens, dtype=torch.long, device=next(model.parameters()).device)
    if (end := end_token(model)) is not None and not ids.is_meta:
        ids[0, -1] = end  # some classifiers look for it
    return cast(Tensor, model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits)


def on_meta(model: nn.Module) -> nn.Module:
    """Return a model of the same configuration without weights: the model itself, where it has none."""
    if all(parameter.is_meta for parameter in model.parameters()):
        return model.eval()
    return _build(type(model), cast(Any, model).config)


def use_cache(config: Any, on: bool) -> None:
    """Let each part of a model keep the keys and values of its texts, or not. Some copy this when they are made.

    Training has no use for them: a text is read once, and a block that is computed again would add them twice.
    """
    config.use_cache = on
    for name in getattr(config, "sub_configs", {}):
        if hasattr(part := getattr(config, name, None), "use_cache"):
            use_cache(part, on)


def name_padding(config: Any, token: int) -> None:
    """Tell every part of a model which token fills texts: a classifier looks for the last one that is not it."""
    for part in (config, config.get_text_config()):
        part.pad_token_id = token


def _build(kind: type, config: Any) -> nn.Module:
    config = copy.deepcopy(config)
    use_cache(config, False)
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


def _runs_of_equal(tensor: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    """Return as much as if all elements were equal."""
    index = torch.empty(1, dtype=torch.long, device="meta")
    return tensor.new_empty(1), index, index


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
    aten.unique_consecutive.default: _runs_of_equal,
}


def stand_in(model: nn.Module) -> nn.Module | None:
    """Return a model like this one with made-up weights, in float32 on the CPU, or ``None`` where none can be made.

    Element (i, j) of a weight is number 2 i + j of a short row of random numbers, so that the weight takes no memory
    and still has full rank. Only what does not depend on learned values may be concluded from it.
    """
    config = cast(Any, model).config
    try:
        if _size(model) > MOST_PARAMETERS:
            config = _shortened(config)
        twin = _build(type(model), config)
        _fill(twin)
        if getattr(config.get_text_config(), "pad_token_id", None) is None:  # a worker names the tokenizer's
            name_padding(twin.config, PADDING)
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
