"""Texts that lie *flat*, one after another in a row: how a model is told, which can, what a classifier's head sees.

Flat texts need no padding between them: a row of the batch is all of a lane's texts, and only attention has to know
where each begins. A classifier's head sees one token of each text, which is all that it reads of a row's.

What is not here: attention itself (``attention``), which texts share a batch (``batch``), to how many forms they are
padded (``forms``).
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from harness.engine.attention import CAPTURABLE, unmasked
from harness.engine.layers import stacked_blocks

LEAK_TEXTS = ((4, 6, 3), 8)  # lengths of the texts of the check below, and the first token's number
CLOSE = 0.02  # of what a model computes, relative: another kernel's rounding to bfloat16 changes less
# Names by which a config says how far an attention looks.
WINDOWS = ("sliding_window", "attention_chunk_size", "attention_window", "window_size")


class Layout(NamedTuple):
    """How texts lie flat before a model.

    Attributes:
        longest: No text may have more tokens; 0: they cannot lie flat.
        first_position: What the model calls the position of a text's first token. RoBERTa counts from after its
            padding token's number.
    """

    longest: int = 0
    first_position: int = 0


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
        chosen = _states(output).flatten(0, 1)[index][:, None]
        if isinstance(output, Tensor):
            return chosen
        if isinstance(output, tuple):
            return (chosen, *output[1:])
        output.last_hidden_state = chosen
        return output

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
    run = _logits if speaks else _judged_by_last if is_causal else _judged_by_first
    sizes = [getattr(config, name, None) for name in WINDOWS]
    longest = min([size for size in sizes if isinstance(size, int) and size > 0], default=2**30)
    others = [texts[0].flip(0), *texts[1:]]
    for position in dict.fromkeys((0, int(getattr(config, "pad_token_id", None) or 0) + 1)):
        try:
            alone = [run(model, [text])[0] for text in texts]
            together, beside_another = run(model, texts, position), run(model, others, position)
        except (RuntimeError, TypeError, ValueError, AssertionError, IndexError):
            continue
        is_same = all(map(_is_close, together, alone))
        if is_same and all(torch.equal(a, b) for a, b in zip(together[1:], beside_another[1:], strict=True)):
            return Layout(longest, position)
    return Layout()


def _is_close(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and float((found - expected).norm()) <= CLOSE * float(expected.norm())


def _logits(model: nn.Module, texts: list[Tensor], first_position: int = 0) -> list[Tensor]:
    """Return each text's logits, (T, V) in float32; several texts lie flat."""
    with unmasked("flat" if len(texts) > 1 else "rows"):
        logits: Tensor = model(**_arguments(texts, first_position), use_cache=False).logits[0].float()
    return list(torch.split(logits, [len(text) for text in texts]))


def _judged_by_first(model: nn.Module, texts: list[Tensor], first_position: int = 0) -> list[Tensor]:
    return _judged(model, texts, [0] * len(texts), first_position)


def _judged_by_last(model: nn.Module, texts: list[Tensor], first_position: int = 0) -> list[Tensor]:
    return _judged(model, texts, [len(text) - 1 for text in texts], first_position)


def _judged(model: nn.Module, texts: list[Tensor], places: list[int], first_position: int) -> list[Tensor]:
    """Return the state that each text is judged by, (H,) in float32; several texts lie flat.

    Raises:
        ValueError: Of a text in a row of its own the head sees something else, too.
    """
    seen: list[Tensor] = []
    owner = _owner(model)
    assert owner is not None
    arguments = _arguments(texts, first_position)
    starts = torch.tensor([0, *(len(text) for text in texts)]).cumsum(0)[:-1]
    index = (starts + torch.tensor(places)).to(texts[0].device)
    hook = owner.register_forward_hook(lambda _, __, output: seen.append(_states(output)))
    try:
        if len(texts) > 1:
            with unmasked("flat"):
                is_one_each = len(judge(model, index, **arguments).logits) == len(texts)
        else:
            with unmasked():
                whole = model(**arguments).logits
                is_one_each = _is_close(judge(model, index, **arguments).logits.float(), whole.float())
        if not is_one_each:
            raise ValueError(f"the head of {type(model).__name__} sees something else than one token of a text")
    finally:
        hook.remove()
    return list(seen[0].flatten(0, 1)[index].float())


def _arguments(texts: list[Tensor], first_position: int) -> dict[str, Any]:
    ids = torch.cat(texts)[None]
    arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if len(texts) > 1:
        lengths = [len(text) for text in texts]
        ends = torch.tensor([0, *lengths], device=ids.device).cumsum(0).int()
        arguments |= flat_arguments(ends, max(lengths))
        positions = torch.cat([torch.arange(n, device=ids.device) for n in lengths])
        arguments["position_ids"] = first_position + positions[None]
    return arguments
