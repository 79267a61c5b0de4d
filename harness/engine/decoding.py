"""Greedy decoding: batched, deterministic, any causal language model.

On a GPU, one token of a small model takes its kernels less time than Python takes to start them. So there the step from
one token to the next is captured in a CUDA graph, over a cache of fixed size, and replayed.
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
from harness.engine.evaluation import by_length
from harness.engine.losses import head_sees
from harness.engine.sharding import is_divided

logger = logging.getLogger(__name__)

LOOK_EVERY = 8  # tokens: how often to wait for the device, and see whether every text has ended
GPU_TOKENS = 2**16  # of a batch of prompts on a GPU, which decodes as many as these in the time of a few


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
    least_tokens = GPU_TOKENS if device.type == "cuda" else 0
    lengths = [len(prompt) for prompt in prompts]
    batches = by_length([length + max_new_tokens for length in lengths], batch_size, least_tokens)
    allowed = company(model, tokenizer) if len(prompts) > 1 else Company.ANY
    if allowed is not Company.ANY:
        batches = of_one_length(lengths, batch_size if allowed is Company.OF_ITS_LENGTH else 1)
    for rows in batches:
        width = max(len(prompts[row]) for row in rows)
        ids = torch.full((len(rows), width), tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, width - len(prompts[row]) :] = torch.as_tensor(prompts[row])
            mask[place, width - len(prompts[row]) :] = 1
        output = continuations(model, tokenizer, ids.to(device), mask.to(device), max_new_tokens, min_new_tokens)
        for row, tokens in zip(rows, output.tolist(), strict=True):
            end = tokens.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in tokens else len(tokens)
            results[row] = tokens[:end]
    return results


class Company(Enum):
    """Which other texts a text may share a batch with, so that what the model writes is what it writes alone."""

    ANY = "any"
    OF_ITS_LENGTH = "of its length"  # where a state runs through the padding before a shorter text
    NONE = "none"  # where even texts of one length disturb each other: a fault of the model's own code


@torch.no_grad()
def company(model: Any, tokenizer: Any) -> Company:
    """Return which texts the model can decode together, found by doing so with a few tokens."""
    if model not in _company:
        device = next(model.parameters()).device
        text = torch.arange(FIRST_TOKEN, FIRST_TOKEN + 4, device=device)[None]
        padding, ones = torch.full_like(text, tokenizer.pad_token_id), torch.ones_like(text)
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
    """
    if input_ids.is_cuda and is_capturable(model, input_ids.shape[1] + max_new_tokens):
        sizes = max_new_tokens, min_new_tokens
        try:
            return _by_steps(model, tokenizer, input_ids, attention_mask, *sizes, stop, _captured)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
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


@torch.no_grad()
def _by_steps(
    model: Any, tokenizer: Any, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int, min_new_tokens: int,
    stop: Sequence[str], prepare: Callable[[Step, torch.device], Step],
) -> Tensor:  # fmt: skip
    """Do as ``continuations``, over a cache of fixed size: each step reads and writes the same tensors.

    ``prepare`` turns the step into what is run from the third token on.
    """
    rows, width = input_ids.shape
    device, end, padding = input_ids.device, tokenizer.eos_token_id, tokenizer.pad_token_id
    # Places behind the current token are hidden because they lie in its future, so the mask may stay the same.
    mask = torch.cat([attention_mask, attention_mask.new_ones(rows, max_new_tokens)], 1)
    cache = fixed_cache(model, width + max_new_tokens)
    position = attention_mask.cumsum(1).sub(1).clamp_min(0)
    penalty = torch.zeros(model.get_output_embeddings().weight.shape[0], device=device)
    if min_new_tokens:
        penalty[end] = -torch.inf
    has_ended = torch.zeros(rows, dtype=torch.bool, device=device)
    token = torch.empty(rows, 1, dtype=torch.long, device=device)
    place = torch.zeros(1, dtype=torch.long, device=device)
    output = torch.full((rows, max_new_tokens), padding, dtype=torch.long, device=device)

    def choose(logits: Tensor) -> None:
        """Take the likeliest next token of every row, or padding after its end."""
        best = (logits.float() + penalty).argmax(-1)
        token.copy_(torch.where(has_ended, padding, best).unsqueeze(1))
        output.index_copy_(1, place, token)
        has_ended.logical_or_(best == end)
        place.add_(1)

    def step() -> None:
        result = model(
            input_ids=token, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True
        )
        position.add_(1)
        choose(result.logits[:, -1])

    with head_sees(model.get_output_embeddings(), lambda hidden: hidden[:, -1]):
        result = model(
            input_ids=input_ids, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True
        )
    position = position[:, -1:] + 1
    choose(result.logits)
    run = step
    for done in range(1, max_new_tokens):
        if done == min_new_tokens:
            penalty.zero_()
        if done == 2:
            run = prepare(step, device)
        run()
        if done % LOOK_EVERY == 0:
            written = output[:, : done + 1]
            if (has_ended | have_stopped(tokenizer, written, stop) if stop else has_ended).all():
                return written
    return output
