"""Greedy decoding: batched, deterministic, any causal language model.

On a GPU, one token of a small model takes its kernels less time than Python takes to start them, so there a captured
step is replayed (``decoder``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import pad

from harness.engine.behaviour import writes_the_same
from harness.engine.decoder import ROOM, Decoder, decoder_for, have_stopped, kept_decoders
from harness.engine.memory import Portions
from harness.engine.probe import FIRST_TOKEN
from harness.engine.slots import pretrained

logger = logging.getLogger(__name__)

GPU_TOKENS = 2**16  # of a batch of prompts on a GPU, which decodes as many as these in the time of a few
_portions = Portions()


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int = 64,
    min_new_tokens: int = 0,
) -> list[list[int]]:
    """Return each prompt's greedy continuation as token ids, without the prompt, cut before an end-of-text token.

    Args:
        model: A causal language model from ``transformers``, in evaluation mode.
        tokenizer: Gives the padding and end-of-text tokens.
        prompts: Token ids.
        max_new_tokens: Longest continuation.
        batch_size: Prompts per batch, at least, and on a GPU as many more as fill it; padded on the left.
        min_new_tokens: No end-of-text token before this many.
    """
    device = next(model.parameters()).device
    results: list[list[int]] = [[] for _ in prompts]
    lengths = [len(prompt) for prompt in prompts]
    needed = [length + max_new_tokens for length in lengths]
    allowed = company(model, tokenizer) if len(prompts) > 1 else Company.ANY
    kept = kept_decoders(model)
    for rows, room in _batches(lengths, needed, allowed, batch_size, GPU_TOKENS if device.type == "cuda" else 0):
        width = max(lengths[row] for row in rows)
        ids = torch.full((len(rows), width), tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, width - len(prompts[row]) :] = torch.as_tensor(prompts[row])
            mask[place, width - len(prompts[row]) :] = 1
        sizes = max_new_tokens, min_new_tokens
        output = continuations(model, tokenizer, ids.to(device), mask.to(device), *sizes, room=room, kept=kept)
        for row, tokens in zip(rows, output.tolist(), strict=True):
            end = tokens.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in tokens else len(tokens)
            results[row] = tokens[:end]
    return results


def _batches(
    lengths: Sequence[int], needed: Sequence[int], allowed: Company, batch_size: int, least_tokens: int
) -> Iterator[tuple[list[int], int]]:
    """Yield row numbers in batches, longest first, and for how many tokens a text each batch needs room.

    Batches of one number of rows and one room follow each other, so that a step is captured for few of them.
    """
    if allowed is not Company.ANY:
        for rows in of_one_length(lengths, batch_size if allowed is Company.OF_ITS_LENGTH else 1):
            yield rows, needed[rows[0]]
        return
    order = sorted(range(len(needed)), key=lambda row: -needed[row])
    while order:
        room = needed[order[0]]
        size = max(batch_size, least_tokens // room)
        alike = [row for row in order if needed[row] * ROOM >= room]
        order = order[len(alike) :]
        for start in range(0, len(alike), size):
            yield alike[start : start + size], room


class Company(Enum):
    """Which other texts a text may share a batch with, so that what the model writes is what it writes alone."""

    ANY = "any"
    OF_ITS_LENGTH = "of its length"  # where a state runs through the padding before a shorter text
    NONE = "none"  # where even texts of one length disturb each other: a fault of the model's own code


@torch.no_grad()
def company(model: Any, tokenizer: Any) -> Company:
    """Return which texts the model can decode together, found by doing so with a few tokens.

    Of the pretrained model, since it is asked once, and what one trial has made of it says nothing of the next.
    """
    if model not in _company:
        device = next(model.parameters()).device
        text = torch.arange(FIRST_TOKEN, FIRST_TOKEN + 4, device=device)[None]
        padding, ones = torch.full_like(text, tokenizer.pad_token_id), torch.ones_like(text)
        with pretrained(model):
            alone = _first_logits(model, text, ones)
            beside = _first_logits(model, torch.cat([text, text + 1]), torch.cat([ones, ones]))
            padded = _first_logits(model, torch.cat([padding, text], 1), torch.cat([torch.zeros_like(text), ones], 1))
        if not writes_the_same(beside, alone):
            _company[model] = Company.NONE
        else:
            _company[model] = Company.ANY if writes_the_same(padded, alone) else Company.OF_ITS_LENGTH
    return _company[model]


_company: WeakKeyDictionary[Any, Company] = WeakKeyDictionary()  # what was found, by model


def _first_logits(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the logits of the first tokens that the model writes after the first text, (tokens, V)."""
    options = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with _plainly(model):
        steps = model.generate(ids, attention_mask=mask, pad_token_id=0, **options).logits
    return torch.stack([logits[0] for logits in steps])


def of_one_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield row numbers in batches of equal length, longest first."""
    for length in sorted(set(lengths), reverse=True):
        rows = [row for row, each in enumerate(lengths) if each == length]
        for start in range(0, len(rows), batch_size):
            yield rows[start : start + batch_size]


def continuations(
    model: Any,
    tokenizer: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    max_new_tokens: int,
    min_new_tokens: int = 0,
    stop: Sequence[str] = (),
    room: int = 0,
    kept: list[Decoder] | None = None,
) -> Tensor:
    """Return the greedy continuations of a batch, (B, up to ``max_new_tokens``); padding follows the end of a text.

    Args:
        model: A causal language model from ``transformers``, in evaluation mode.
        tokenizer: Gives the padding and end-of-text tokens.
        input_ids: (B, T), padded on the left, on the model's device.
        attention_mask: (B, T), 0 where padded.
        max_new_tokens: At least 1.
        min_new_tokens: No end-of-text token before this many.
        stop: Nobody reads a text beyond the first of these strings in it, so its tokens there may be anything.
        room: Tokens for which later batches will need room, if more than this one.
        kept: Decoders of the model as it is now, to choose from and add to; by default ``kept_decoders``.
    """
    kept = kept_decoders(model) if kept is None else kept

    def write(some: slice) -> Tensor:
        sizes = max_new_tokens, min_new_tokens
        try:
            return _continuations(model, tokenizer, input_ids[some], attention_mask[some], *sizes, stop, room, kept)
        except torch.OutOfMemoryError:
            kept.clear()  # fewer texts at once want a smaller one
            raise

    parts = _portions(model, len(input_ids), write)
    width = max(part.shape[1] for part in parts)
    return torch.cat([pad(part, (0, width - part.shape[1]), value=tokenizer.pad_token_id) for part in parts])


def _continuations(
    model: Any, tokenizer: Any, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int, min_new_tokens: int,
    stop: Sequence[str], room: int, kept: list[Decoder],
) -> Tensor:  # fmt: skip
    """Do as ``continuations``, all at once."""
    decoder = decoder_for(kept, model, tokenizer, input_ids, max_new_tokens, room) if input_ids.is_cuda else None
    if decoder is not None:
        try:
            return decoder(input_ids, attention_mask, min_new_tokens, stop)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            kept.remove(decoder)
            logger.warning("decoding of %s cannot be captured and runs slower: %s", type(model).__name__, error)
            logger.debug("", exc_info=True)
    written = slice(input_ids.shape[1], None)
    with _plainly(model):
        output: Tensor = model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens or None,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            stopping_criteria=[lambda ids, _: have_stopped(tokenizer, ids[:, written], stop)] if stop else None,
        )
    return output[:, written]


@contextmanager
def _plainly(model: Any) -> Iterator[None]:
    """Set aside how the model's authors like it to write, e.g. a penalty on repetition: greedy is greedy."""
    from transformers import GenerationConfig

    liked, model.generation_config = model.generation_config, GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = liked
