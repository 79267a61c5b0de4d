"""Attention that needs no mask: over rows that are padded behind, or over texts that lie one after another.

What is not here: how a model is told where texts begin that lie so, and which models can (``flat``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

CAPTURABLE = "sdpa_without_a_look"
_unmasked: ContextVar[str] = ContextVar("_unmasked", default="")


@contextmanager
def unmasked(layout: str = "rows") -> Iterator[None]:
    """Promise that no token may see one that a mask would have to hide.

    Args:
        layout: ``rows``: there is no padding, or the model is causal and padded behind. ``flat``: texts lie one after
            another, and attention knows where each begins. ``beginnings``: a causal model, padded behind, begins to
            fill a cache of fixed size, of whose places only as many count as there are tokens.
    """
    before = _unmasked.set(layout)
    try:
        yield
    finally:
        _unmasked.reset(before)


def use_capturable_attention(model: nn.Module) -> None:
    """Let us tell the model that attention needs no mask, instead of it looking at the mask's values.

    transformers otherwise waits for the device to look, and builds a mask that is not needed while a CUDA graph is
    captured, so that captured steps would run a slower kernel. Only models that use PyTorch's own attention are
    changed; what is computed stays the same.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    def mask(**arguments: Any) -> Any:
        queries = arguments["q_length"] if "q_length" in arguments else arguments["cache_position"].shape[0]
        keys, window = arguments["kv_length"], arguments.get("local_size")
        shapes_are_plain = queries == keys and (window is None or keys < window)
        may_skip = arguments.get("allow_is_causal_skip", True) or arguments.get("allow_is_bidirectional_skip", False)
        may_skip = shapes_are_plain and may_skip
        promised = _unmasked.get()
        is_certain = promised in ("flat", "beginnings") or (promised and may_skip)
        return None if is_certain else sdpa_mask(**arguments)

    config: Any = model.config
    if config._attn_implementation == "sdpa":
        AttentionInterface.register(CAPTURABLE, attention)
        AttentionMaskInterface.register(CAPTURABLE, mask)
        model.set_attn_implementation(CAPTURABLE)  # type: ignore[operator]


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **rest: Any
) -> tuple[Tensor, None]:
    """Do as transformers' attention by PyTorch; where ``cu_seq_lens_q`` says where texts begin, text by text.

    Args:
        module: The layer.
        query: (L, heads, N, D): L rows of texts.
        key: (L, fewer heads, N, D).
        value: The same.
        attention_mask: Of a model's own making where texts lie flat.
        rest: As transformers gives it.

    Raises:
        ValueError: It hides or weighs places of texts that lie flat.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    boundaries = rest.pop("cu_seq_lens_q", None)
    longest = rest.pop("max_length_q", None)
    rest.pop("cu_seq_lens_k", None), rest.pop("max_length_k", None)
    if boundaries is None:
        if _unmasked.get() == "beginnings":
            key, value = (each[:, :, : query.shape[2]] for each in (key, value))
        grouped = query.shape[1] // key.shape[1]
        if query.shape[2] == 1 and grouped > 1 and _is_of_all_heads(attention_mask):
            return _one_token(query, key, value, attention_mask, rest.get("scaling"), grouped), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, **rest)
    if attention_mask is not None:  # e.g. of relative positions, which a row of several texts does not have
        raise ValueError("attention over texts that lie flat takes no mask")
    lanes, heads, tokens, _ = query.shape
    # (L N, heads, D): the tokens of all texts in one row.
    q, k, v = (each.transpose(1, 2).flatten(0, 1) for each in (query, key, value))
    scale = rest.get("scaling")
    told = rest.get("is_causal")
    is_causal = bool(getattr(module, "is_causal", True) if told is None else told)
    is_half = q.dtype in (torch.bfloat16, torch.float16)
    if q.is_cuda and is_half and k.shape[-1] == v.shape[-1] <= 256:
        output = torch.ops.aten._flash_attention_forward(
            q, k, v, boundaries, boundaries, longest, longest, 0.0, is_causal, False, scale=scale
        )[0]
    else:
        output = _text_by_text(q, k, v, boundaries, is_causal, scale)
    return output.view(lanes, tokens, heads, v.shape[-1]), None


def _is_of_all_heads(mask: Tensor | None) -> bool:
    return mask is None or (mask.ndim == 4 and mask.shape[1] == 1)


def _one_token(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None, grouped: int
) -> Tensor:
    """Return the attention of one new token, (L, 1, heads, D).

    Query heads that share their keys stand as several queries of one head. transformers copies keys and values for each
    of them instead, and with a cache of many tokens that is most of what a step of decoding does.
    """
    rows, heads, _, size = query.shape
    queries = query.view(rows, heads // grouped, grouped, size)
    if mask is not None:
        mask = mask.expand(-1, -1, grouped, -1)
    output = scaled_dot_product_attention(queries, key, value, attn_mask=mask, scale=scale)
    return output.reshape(rows, 1, heads, value.shape[-1])


def _text_by_text(q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor, is_causal: bool, scale: float | None) -> Tensor:
    """Return attention within each text, (N, heads, D), for devices and precisions without a kernel for it."""
    ends = boundaries.tolist()
    outputs = []
    for start, end in pairwise(ends):
        if end > start:
            query, key, value = (each[None, start:end].transpose(1, 2) for each in (q, k, v))
            grouped = q.shape[1] != k.shape[1]
            output = scaled_dot_product_attention(
                query, key, value, is_causal=is_causal, scale=scale, enable_gqa=grouped
            )
            outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)
