"""Greedy decoding: batched, deterministic, any causal language model.

On a GPU, one token of a small model takes its kernels less time than Python takes to start them. So there the step from
one token to the next is captured in a CUDA graph, over a cache of fixed size, and replayed: once for many batches, and
for one trial after another where they are alike (``readers``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from harness.engine.behaviour import FIRST_TOKEN, PADDING_CHANGE, PADDING_CHANGE_HALF
from harness.engine.capture import capture
from harness.engine.losses import head_sees
from harness.engine.sharding import is_divided
from harness.engine.slots import pretrained, reading

logger = logging.getLogger(__name__)

LOOK_EVERY = 4  # tokens: how often to wait for the device, and see whether every text has ended
GPU_TOKENS = 2**16  # of a batch of prompts on a GPU, which decodes as many as these in the time of a few
ROOM = 2  # times what a text needs: more than that is waste, and worth a captured step of its own
KEPT = 1 / 16  # of a GPU's memory, for the caches of decoders that may be wanted again


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
        if not _is_same(beside, alone):
            _company[model] = Company.NONE
        else:
            _company[model] = Company.ANY if _is_same(padded, alone) else Company.OF_ITS_LENGTH
    return _company[model]


_company: WeakKeyDictionary[Any, Company] = WeakKeyDictionary()  # what was found, by model


def _first_logits(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the logits of the first tokens that the model writes after the first text, (tokens, V)."""
    options = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with _plainly(model):
        steps = model.generate(ids, attention_mask=mask, pad_token_id=0, **options).logits
    return torch.stack([logits[0] for logits in steps])


def _is_same(found: Tensor, expected: Tensor) -> bool:
    """Compare logits as long as both wrote the same: behind two tokens of one likelihood stand two texts."""
    count = min(len(found), len(expected))
    agree = (found[:count].argmax(-1) == expected[:count].argmax(-1)).tolist()
    count = next((place + 1 for place, same in enumerate(agree) if not same), count)
    change = (found[:count] - expected[:count]).float().norm() / expected[:count].float().norm().clamp_min(1e-12)
    return bool(change <= (PADDING_CHANGE_HALF if expected.dtype is torch.bfloat16 else PADDING_CHANGE))  # not if NaN


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
    decoder = _decoder(kept, model, tokenizer, input_ids, max_new_tokens, room) if input_ids.is_cuda else None
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


_kept: WeakKeyDictionary[Any, list[Decoder]] = WeakKeyDictionary()  # by what reads the modules that they captured


def kept_decoders(model: Any) -> list[Decoder]:
    """Return the decoders that were made with what now stands in the model's slots; they go when that goes.

    An empty list of the caller's own where nothing stands there: who knows how long such a model stays as it is.
    """
    reader = reading(model)
    return [] if reader is None else _kept.setdefault(reader, [])


def _decoder(
    kept: list[Decoder], model: Any, tokenizer: Any, input_ids: Tensor, max_new_tokens: int, room: int
) -> Decoder | None:
    """Return a decoder for a batch, one of those kept or a new one; ``None`` where none can be."""
    rows, width = input_ids.shape
    needed = width + max_new_tokens
    for each in kept:
        if each.tokenizer is tokenizer and each.max_new_tokens == max_new_tokens and each.takes(rows, needed):
            return each
    room = max(room, needed)
    if not is_capturable(model, room):
        return None
    most = KEPT * torch.cuda.get_device_properties(input_ids.device).total_memory
    while kept and sum(each.cache_bytes() for each in kept) > most:
        kept.pop(0)  # its memory is free before there is another
    kept.append(Decoder(model, tokenizer, rows, room, max_new_tokens))
    return kept[-1]


@contextmanager
def _plainly(model: Any) -> Iterator[None]:
    """Set aside how the model's authors like it to write, e.g. a penalty on repetition: greedy is greedy."""
    from transformers import GenerationConfig

    liked, model.generation_config = model.generation_config, GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = liked


def have_stopped(tokenizer: Any, tokens: Tensor, stop: Sequence[str]) -> Tensor:
    """Return which rows of tokens hold one of the strings when they are decoded, (B,) of bool."""
    texts = tokenizer.batch_decode(tokens)
    return torch.tensor([any(each in text for each in stop) for text in texts], device=tokens.device)


def is_capturable(model: Any, tokens: int) -> bool:
    """Return whether a step of decoding texts of so many tokens changes tensors only.

    A recurrent state also counts in Python, which the replay of a captured step does not repeat, and so does a sliding
    window that a text outgrows. Where a model is divided, ranks exchange its parts at each step.
    """
    from transformers.cache_utils import StaticLayer

    if not getattr(model, "_can_compile_fullgraph", False) or is_divided(model):
        return False
    return all(type(layer) is StaticLayer for layer in fixed_cache(model, tokens).layers)


def fixed_cache(model: Any, tokens: int) -> Any:
    """Return a cache for texts of so many tokens. A layer whose window they do not outgrow keeps all of them."""
    from transformers import StaticCache
    from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer

    cache = StaticCache(config=model.config, max_cache_len=tokens)
    for number, layer in enumerate(cache.layers):
        if type(layer) is StaticSlidingWindowLayer and tokens <= layer.max_cache_len:
            cache.layers[number] = StaticLayer(max_cache_len=tokens)
    return cache


Step = Callable[[], None]


def _captured(step: Step, device: torch.device) -> Step:
    """Return the step as a replayed CUDA graph. Nothing is computed yet."""
    graph, _ = capture(step, torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
    return graph.replay


class Decoder:
    """Decodes batches of one size, one after another, over a cache of fixed size.

    The step from token to token reads and writes the same tensors in every batch, so it is captured once.

    Args:
        model: As for ``continuations``; ``is_capturable``.
        tokenizer: Gives the padding and end-of-text tokens.
        rows: Texts of a batch, at most.
        room: Tokens of a text, its continuation included, at most.
        max_new_tokens: At least 1.
        prepare: Turns the step into what is run from the third token on.
    """

    def __init__(
        self, model: Any, tokenizer: Any, rows: int, room: int, max_new_tokens: int,
        prepare: Callable[[Step, torch.device], Step] = _captured,
    ) -> None:  # fmt: skip
        self.model, self.rows, self.room, self.max_new_tokens = model, rows, room, max_new_tokens
        self.end, self.padding, self.prepare = tokenizer.eos_token_id, tokenizer.pad_token_id, prepare
        self.tokenizer, self.device = tokenizer, next(model.parameters()).device
        on = {"dtype": torch.long, "device": self.device}
        self._cache = fixed_cache(model, room)
        self._mask = torch.zeros(rows, room, **on)
        self._position, self._token = (torch.zeros(rows, 1, **on) for _ in range(2))
        self._place = torch.zeros(1, **on)
        self._output = torch.zeros(rows, max_new_tokens, **on)
        self._has_ended = torch.zeros(rows, dtype=torch.bool, device=self.device)
        self._penalty = torch.zeros(model.get_output_embeddings().weight.shape[0], device=self.device)
        self._run: Step | None = None

    def cache_bytes(self) -> int:
        """Return what keys and values take."""
        layers = [layer for layer in self._cache.layers if layer.is_initialized]
        return sum(each.nbytes for layer in layers for each in (layer.keys, layer.values))

    def takes(self, rows: int, tokens: int) -> bool:
        """Return whether batches of so many texts, of so many tokens, are decoded here without much waste."""
        return rows <= self.rows and tokens <= self.room <= ROOM * tokens

    @torch.no_grad()
    def __call__(
        self, input_ids: Tensor, attention_mask: Tensor, min_new_tokens: int = 0, stop: Sequence[str] = ()
    ) -> Tensor:
        """Do as ``continuations``."""
        count = len(input_ids)
        written = self._output[:count]
        self._begin(input_ids, attention_mask, min_new_tokens)
        for done in range(1, self.max_new_tokens):
            if done == min_new_tokens:
                self._penalty.zero_()
            if self._run is None and done == 2:
                self._run = self.prepare(self._step, self.device)
            (self._run or self._step)()
            if done % LOOK_EVERY == 0:
                ended, so_far = self._has_ended[:count], written[:, : done + 1]
                if (ended | have_stopped(self.tokenizer, so_far, stop) if stop else ended).all():
                    return so_far.clone()
        return written.clone()

    def _begin(self, input_ids: Tensor, attention_mask: Tensor, min_new_tokens: int) -> None:
        """Forget the batch before, and write the first token. Rows that this batch lacks are its first text again."""
        count, width = input_ids.shape
        missing = self.rows - count
        if missing:
            input_ids = torch.cat([input_ids, input_ids[:1].expand(missing, -1)])
            attention_mask = torch.cat([attention_mask, attention_mask[:1].expand(missing, -1)])
        self._cache.reset()
        # Places behind the current token are hidden because they lie in its future, so the mask may stay the same.
        self._mask.fill_(1)[:, :width] = attention_mask
        self._penalty.zero_()
        if min_new_tokens:
            self._penalty[self.end] = -torch.inf
        self._has_ended.zero_()[count:] = True
        self._place.zero_()
        self._output.fill_(self.padding)
        positions = attention_mask.cumsum(1).sub(1).clamp_min(0)
        with head_sees(self.model.get_output_embeddings(), lambda hidden: hidden[:, -1]):
            logits = self._forward(input_ids, positions)
        self._position.copy_(positions[:, -1:] + 1)
        self._choose(logits)

    def _forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        result = self.model(
            input_ids=input_ids, attention_mask=self._mask, position_ids=positions, past_key_values=self._cache,
            use_cache=True,
        )  # fmt: skip
        logits: Tensor = result.logits
        return logits

    def _step(self) -> None:
        """Write the next token of every row."""
        logits = self._forward(self._token, self._position)
        self._position.add_(1)
        self._choose(logits[:, -1])

    def _choose(self, logits: Tensor) -> None:
        """Take the likeliest next token of every row, or padding after its end."""
        best = (logits.float() + self._penalty).argmax(-1)
        self._token.copy_(torch.where(self._has_ended, self.padding, best).unsqueeze(1))
        self._output.index_copy_(1, self._place, self._token)
        self._has_ended.logical_or_(best == self.end)
        self._place.add_(1)
