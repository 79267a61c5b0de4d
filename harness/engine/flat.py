"""Texts that lie *flat*, one after another in a row: how a model is told, which can, what a classifier's head sees.

Flat texts need no padding between them: a row of the batch is all of a lane's texts, and only attention has to know
where each begins. A classifier's head sees one token of each text, which is all that it reads of a row's.

What is not here: attention itself (``attention``), which texts share a batch (``batch``), to how many forms they are
padded (``forms``).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from harness.engine.attention import CAPTURABLE, unmasked
from harness.engine.layers import stacked_blocks

LEAK_TEXTS = ((4, 6, 3), 8)  # lengths of the texts of the check below, and the first token's number
UNCOUNTED_PLACE = 2  # in the second of them: there it has the padding token
CLOSE = 0.02  # of what a model computes, relative: another kernel's rounding to bfloat16 changes less
LEAK = 1e-5  # likewise, of what another text may change: rounding to float32, where experts get other tokens beside it
# Names by which a config says how far an attention looks.
WINDOWS = ("sliding_window", "attention_chunk_size", "attention_window", "window_size")


class Layout(NamedTuple):
    """How texts lie flat before a model.

    Attributes:
        longest: No text may have more tokens; 0: they cannot lie flat.
        uncounted: RoBERTa's padding token: it counts the others from after its number, and this one not, also within a
            text. -1: every token counts, from 0.
    """

    longest: int = 0
    uncounted: int = -1


def positions(ids: np.ndarray[Any, Any], starts: np.ndarray[Any, Any], uncounted: int) -> np.ndarray[Any, Any]:
    """Return what a model calls the positions of the tokens of texts that lie flat, (T,).

    Args:
        ids: Of all texts, (T,).
        starts: Where each text begins, and the last one ends, (texts + 1,).
        uncounted: See ``Layout``.
    """
    counts = ids != uncounted
    total = counts.cumsum()
    before = np.concatenate([[0], total])[starts[:-1]]
    return np.asarray(uncounted + (total - np.repeat(before, np.diff(starts))) * counts)


def flat_arguments(boundaries: Tensor, longest: int) -> dict[str, Any]:
    """Return what tells a model where texts that lie flat begin, as transformers hands it to its kernels.

    Args:
        boundaries: Where each text begins and the last one ends, int32, over all rows one after another.
        longest: No text has more tokens.
    """
    return {
        "cu_seq_lens_q": boundaries, "cu_seq_lens_k": boundaries, "max_length_q": longest, "max_length_k": longest,
    }  # fmt: skip


def judge(model: nn.Module, index: Tensor, **arguments: Any) -> Any:
    """Return a classifier's output for texts whose tokens its head cannot tell apart by rows.

    The head, whatever it is, gets a batch with one token a text. The model under it gets all of them.

    Args:
        model: From ``transformers``, or around such a model.
        index: The token that each text is judged by, among all tokens, (texts,).
        arguments: What the model under the head gets, ``input_ids`` among it.
    """
    inner = _pretrained(model)
    owner = _owner(inner)
    assert owner is not None

    def give(_: nn.Module, __: Any, given: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        return (), {**given, **arguments}

    def choose(_: nn.Module, __: Any, output: Any) -> Any:
        return _changed(output, _states(output).flatten(0, 1)[index][:, None])

    hooks = [
        inner.base_model.register_forward_pre_hook(give, with_kwargs=True),
        owner.register_forward_hook(choose),
    ]
    tokens = arguments["input_ids"].flatten()[index][:, None]
    try:
        return model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    finally:
        for hook in hooks:
            hook.remove()


def _pretrained(model: nn.Module) -> Any:
    """Return the model of transformers within what a method may have put around it."""
    from transformers import PreTrainedModel

    return next(each for each in model.modules() if isinstance(each, PreTrainedModel))


def _owner(model: nn.Module) -> nn.Module | None:
    """Return the module that runs a model's blocks one after another; ``None`` where the model is no stack of them."""
    first = next(iter(stacked_blocks(model)), None)
    for module in model.modules() if first is not None else ():
        if any(isinstance(each, nn.ModuleList) and len(each) and each[0] is first for each in module.children()):
            return module
    return None


def _states(output: Any) -> Tensor:
    """Return the hidden states, (rows, T, H), among what a stack of blocks returns."""
    if isinstance(output, Tensor):
        return output
    return cast(Tensor, output[0])


def _changed(output: Any, states: Tensor) -> Any:
    """Return what a stack of blocks returns, with other hidden states in it."""
    if isinstance(output, Tensor):
        return states
    if isinstance(output, tuple):
        return (states, *output[1:])
    output.last_hidden_state = states
    return output


@torch.no_grad()
def layout_of(model: nn.Module, speaks: bool, is_causal: bool) -> Layout:
    """Return how texts may lie flat before a model.

    Whether they can is tried: a text beside others must get what it gets alone, and must not notice when another one
    changes. Convolutions, recurrent states and positions that count rows fail, whatever they are called. So do
    classifiers that see more than one token of a text.

    Args:
        model: From ``transformers``.
        speaks: Its logits are asked for at every token; otherwise it is a classifier.
        is_causal: No token sees a later one. Then a text is judged by its last token, otherwise by its first.
    """
    config = cast(Any, model.config)
    if getattr(config, "_attn_implementation", "") != CAPTURABLE or not (speaks or _owner(model)):
        return Layout()
    config = config.get_text_config()  # of a model that also takes images
    device = next(model.parameters()).device
    lengths, first = LEAK_TEXTS
    vocabulary = int(getattr(config, "vocab_size", 0) or 0)
    if vocabulary < first + max(lengths) + 1:
        first = 0
    texts = [torch.arange(first, first + n, device=device) % max(1, vocabulary) for n in lengths]
    padding = int(getattr(config, "pad_token_id", None) or 0)
    texts[1][UNCOUNTED_PLACE] = padding
    run = _logits if speaks else _judged_by_last if is_causal else _judged_by_first
    sizes = [getattr(config, name, None) for name in WINDOWS]
    longest = min([size for size in sizes if isinstance(size, int) and size > 0], default=2**30)
    others = [texts[0], texts[1][:1].repeat(lengths[1]), texts[2]]
    distances: dict[int, float] = {}
    for uncounted in (-1, padding):
        try:
            alone = [run(model, [text], uncounted)[0] for text in texts]
            together, beside_another = run(model, texts, uncounted), run(model, others, uncounted)
        except (RuntimeError, TypeError, ValueError, AssertionError, IndexError):
            continue
        if all(_distance(together[each], beside_another[each]) <= LEAK for each in (0, 2)):
            distances[uncounted] = max(map(_distance, together, alone))
    nearest = min(distances, key=lambda each: distances[each], default=-1)
    return Layout(longest, nearest) if distances.get(nearest, 1.0) <= CLOSE else Layout()


def _distance(found: Tensor, expected: Tensor) -> float:
    """Return how far two tensors are apart, relative."""
    if found.shape != expected.shape:
        return math.inf
    return float((found - expected).norm()) / max(float(expected.norm()), 1e-12)


def _logits(model: nn.Module, texts: list[Tensor], uncounted: int) -> list[Tensor]:
    """Return each text's logits, (T, V) in float32; several texts lie flat."""
    with unmasked("flat" if len(texts) > 1 else "rows"):
        logits: Tensor = model(**_arguments(texts, uncounted), use_cache=False).logits[0].float()
    return list(torch.split(logits, [len(text) for text in texts]))


def _judged_by_first(model: nn.Module, texts: list[Tensor], uncounted: int) -> list[Tensor]:
    return _judged(model, texts, [0] * len(texts), uncounted)


def _judged_by_last(model: nn.Module, texts: list[Tensor], uncounted: int) -> list[Tensor]:
    return _judged(model, texts, [len(text) - 1 for text in texts], uncounted)


def _judged(model: nn.Module, texts: list[Tensor], places: list[int], uncounted: int) -> list[Tensor]:
    """Return the states of each text's tokens, (T, H) in float32; several texts lie flat.

    Raises:
        ValueError: Of a text in a row of its own the head sees something else than the token at its place.
    """
    seen: list[Tensor] = []
    owner = _owner(model)
    assert owner is not None
    arguments = _arguments(texts, uncounted)
    starts = torch.tensor([0, *(len(text) for text in texts)]).cumsum(0)[:-1]
    index = (starts + torch.tensor(places)).to(texts[0].device)
    hook = owner.register_forward_hook(lambda _, __, output: seen.append(_states(output)))
    try:
        with unmasked("flat" if len(texts) > 1 else "rows"):
            found = judge(model, index, **arguments).logits
            is_one_each = len(found) == len(texts)
            if len(texts) == 1:
                whole = model(**arguments).logits
                is_one_each = _distance(found.float(), whole.float()) <= CLOSE
                is_one_each &= torch.equal(_disturbed(model, owner, int(index), arguments), whole)
        if not is_one_each:
            raise ValueError(f"the head of {type(model).__name__} sees something else than one token of a text")
    finally:
        hook.remove()
    return list(torch.split(seen[0].flatten(0, 1).float(), [len(text) for text in texts]))


def _disturbed(model: nn.Module, owner: nn.Module, place: int, arguments: dict[str, Any]) -> Tensor:
    """Return the output for a text in a row of its own, all of whose tokens but one end in other states."""

    def disturb(_: nn.Module, __: Any, output: Any) -> Any:
        states = -_states(output)
        states[:, place] *= -1
        return _changed(output, states)

    hook = owner.register_forward_hook(disturb)
    try:
        return cast(Tensor, model(**arguments).logits)
    finally:
        hook.remove()


def _arguments(texts: list[Tensor], uncounted: int) -> dict[str, Any]:
    ids = torch.cat(texts)[None]
    arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if len(texts) > 1:
        lengths = [len(text) for text in texts]
        starts = np.cumsum([0, *lengths])
        arguments |= flat_arguments(torch.from_numpy(starts).int().to(ids.device), max(lengths))
        numbers = positions(ids[0].cpu().numpy(), starts, uncounted)
        arguments["position_ids"] = torch.from_numpy(numbers)[None].to(ids.device)
    return arguments
