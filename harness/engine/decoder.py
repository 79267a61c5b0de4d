"""The step from one token to the next as a GPU runs it: captured in a CUDA graph, over a cache of fixed size.

It is captured once for many batches, and for one trial after another where they are alike (``readers``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from harness.engine.attention import unmasked
from harness.engine.behaviour import writes_the_same
from harness.engine.capture import capture
from harness.engine.losses import head_sees
from harness.engine.probe import FIRST_TOKEN
from harness.engine.sharding import is_divided
from harness.engine.slots import pretrained, reading

LOOK_EVERY = 4  # tokens: how often to wait for the device, and see whether every text has ended
ROOM = 2  # times what a text needs: more than that is waste, and worth a captured step of its own
KEPT = 1 / 16  # of a GPU's memory, for the caches of decoders that may be wanted again

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
        self._pads_behind = pads_behind(model)

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
        rows, places = torch.arange(self.rows, device=self.device), torch.arange(width, device=self.device)
        lengths = attention_mask.sum(1)
        last = torch.full_like(lengths, width - 1)
        if self._pads_behind:
            turned = (places + (width - lengths)[:, None]) % width
            input_ids, attention_mask, last = input_ids.gather(1, turned), attention_mask.gather(1, turned), lengths - 1
        self._cache.reset()
        # Padding stays hidden. Places behind the current token are hidden because they lie in its future, so the mask
        # may stay the same.
        self._mask.fill_(1)[:, :width] = attention_mask
        self._penalty.zero_()
        if min_new_tokens:
            self._penalty[self.end] = -torch.inf
        self._has_ended.zero_()[count:] = True
        self._place.zero_()
        self._output.fill_(self.padding)
        positions = attention_mask.cumsum(1).sub(1).clamp_min(0)
        promise = unmasked("beginnings") if self._pads_behind else nullcontext()
        with head_sees(self.model.get_output_embeddings(), lambda hidden: hidden[rows, last]), promise:
            logits = self._forward(input_ids, positions)
        self._position.copy_(lengths[:, None])
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


_kept: WeakKeyDictionary[Any, list[Decoder]] = WeakKeyDictionary()  # by what reads the modules that they captured


def kept_decoders(model: Any) -> list[Decoder]:
    """Return the decoders that were made with what now stands in the model's slots; they go when that goes.

    An empty list of the caller's own where nothing stands there: who knows how long such a model stays as it is.
    """
    reader = reading(model)
    return [] if reader is None else _kept.setdefault(reader, [])


def decoder_for(
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


@torch.no_grad()
def pads_behind(model: Any) -> bool:
    """Return whether a text may go on behind padding, found by trying: then no mask is needed to read its beginning.

    Not so where a model's positions are those of the cache.
    """
    if model not in _pads_behind:
        device = next(model.parameters()).device
        text = torch.arange(FIRST_TOKEN, FIRST_TOKEN + 5, device=device)[None]
        mask = torch.tensor([[1, 1, 1, 1, 0, 0, 1]], device=device)
        options: dict[str, Any] = {"attention_mask": mask, "past_key_values": fixed_cache(model, 7), "use_cache": True}
        with pretrained(model):
            expected = model(input_ids=text, attention_mask=torch.ones_like(text)).logits[:, -1]
            places = torch.arange(6, device=device)[None]
            with unmasked("beginnings"):
                model(input_ids=text[:, [0, 1, 2, 3, 3, 3]], position_ids=places, **options)
            found = model(input_ids=text[:, 4:], position_ids=places[:, 4:5], **options).logits[:, -1]
        _pads_behind[model] = writes_the_same(found, expected)
    return _pads_behind[model]


_pads_behind: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # what was found, by model


def have_stopped(tokenizer: Any, tokens: Tensor, stop: Sequence[str]) -> Tensor:
    """Return which rows of tokens hold one of the strings when they are decoded, (B,) of bool."""
    texts = tokenizer.batch_decode(tokens)
    return torch.tensor([any(each in text for each in stop) for text in texts], device=tokens.device)
