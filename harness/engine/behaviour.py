"""What a model must not do with a text, whatever its class: look ahead, mind its padding, or find the text too long.

Found by running it: with its weights where it trains, and with made-up ones (``probe.stand_in``) where it is planned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from harness.contract.task import ModelKind
from harness.engine.probe import FIRST_TOKEN, TOKENS, differentiable, runs, some_text
from harness.errors import ConfigError

LOOK_AHEAD = 1e-4  # of earlier logits, that a later token may change: rounding
PADDING_CHANGE = 1e-3  # of a model's output: rounding; more in half precision
PADDING_CHANGE_HALF = 0.05

aten = torch.ops.aten


def check_behaviour(model: nn.Module, kind: ModelKind) -> None:
    """Refuse a model whose scores would mean nothing.

    Raises:
        ConfigError: A language model in which a token sees those that follow, or a classifier that computes something
            else of a text when it is padded: what it learns and how it scores would depend on the texts that share a
            batch.
    """
    name = type(model).__name__
    if kind in (ModelKind.CAUSAL_LM, ModelKind.FROM_SCRATCH):
        change = look_ahead(model)
        if not change <= LOOK_AHEAD:  # nor if it is undefined
            raise ConfigError(
                f"{name}: a later token changes what is predicted before it, by {change:.2%} here, so every token "
                "would see its own label and scores would mean nothing; take a causal language model"
            )
        return
    change = padding_change(model)
    is_half = next(model.parameters()).dtype not in (torch.float32, torch.float64)
    if not change <= (PADDING_CHANGE_HALF if is_half else PADDING_CHANGE):
        raise ConfigError(
            f"{name}: padding a text changes what the model computes of it, by {change:.1%} here, so scores would "
            "depend on which texts share a batch; take another encoder"
        )


def check_gradients(model: nn.Module, places: Mapping[str, Sequence[str]] = MappingProxyType({})) -> None:
    """Refuse a model in which something would be counted that cannot train.

    Args:
        model: With weights, or a stand-in.
        places: Of each layer that an adapter may work in, where it stands: one that is called is enough.

    Raises:
        ConfigError: No gradient comes through the model, or through one of the layers.
    """
    kind = type(model).__name__
    try:
        reached = differentiable(model)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ConfigError(f"{kind}: no gradient comes through it ({_in_short(error)}); take another model") from error
    if silent := [name for name, where in places.items() if reached.isdisjoint(where)]:
        raise ConfigError(
            f"{kind}: no gradient comes through layer {silent[0]!r}, so its adapter would count and not train "
            f"({len(silent)} such layers); leave it out with --targets"
        )


@torch.no_grad()
def look_ahead(model: nn.Module) -> float:
    """Return how much the last token of a text changes the logits before it, as a fraction of their norm."""
    text = some_text(model)
    other = text.clone()
    other[0, -1] = FIRST_TOKEN
    before, after = (_logits(model, each)[:, :-1].float() for each in (text, other))
    return float((before - after).norm() / before.norm().clamp_min(1e-12))


@torch.no_grad()
def padding_change(model: nn.Module) -> float:
    """Return how much padding behind a text changes its one output, as a fraction of its norm.

    The text's tokens are odd in number: some models see several at once, and the last ones together with padding.
    """
    config = cast(Any, model).config
    text = some_text(model)[:, 1:]
    padded = torch.full((1, 2 * TOKENS), getattr(config.get_text_config(), "pad_token_id", None) or 0).to(text)
    padded[:, : TOKENS - 1] = text
    mask = torch.arange(2 * TOKENS, device=text.device)[None].lt(TOKENS - 1).to(text)
    alone, padded = _logits(model, text).float(), _logits(model, padded, mask).float()
    return float((padded - alone).norm() / alone.norm().clamp_min(1e-12))


@torch.no_grad()
def position_limit(model: nn.Module) -> int | None:
    """Return the most tokens that a text may have; ``None`` where nothing limits it.

    A table of positions is what is read at higher and higher rows, the longer a text of one and the same token is, and
    at last at one that it does not have. A table of distances is read so, too, but has a row for all larger ones.
    """
    reads = [_reads(model, count) for count in (TOKENS, 2 * TOKENS)]
    limits = []
    for is_kept in (True, False):
        few, many = ([each for each in of_text if each.is_kept is is_kept] for of_text in reads)
        if len(few) != len(many):
            continue
        limits += [
            (after.size - (after.row - 2 * TOKENS + 1), after.is_sliced)
            for before, after in zip(few, many, strict=True)
            if before.size == after.size and after.row - before.row == TOKENS
        ]
    # Some models take a slice of a table for every block of a text. Those can take a text of several blocks.
    certain = {limit for limit, is_sliced in limits if not is_sliced and not _finds_rows(model, limit + 1)}
    sliced = {limit for limit, is_sliced in limits if is_sliced} - certain
    return min(certain | {limit for limit in sliced if not _passes(model, limit + 1)}, default=None)


def _passes(model: nn.Module, count: int) -> bool:
    """Return whether a text of this many tokens passes, as far as can be told without computing anything."""
    return runs(model, count) if runs(model, TOKENS) else _finds_rows(model, count)


def _finds_rows(model: nn.Module, count: int) -> bool:
    """Return whether every table has the rows that are read for a text of this many tokens."""
    try:
        _reads(model, count)
    except ConfigError:
        return False
    return True


class _Read(NamedTuple):
    """What was read of a table.

    Attributes:
        size: Rows that it has.
        row: The highest that was read; of a slice from the end, counted from there.
        is_sliced: It was a slice.
        is_kept: The table is the model's own. One that is made for every text, such as MPT's biases of distances, is
            known as a table by being sliced.
    """

    size: int
    row: int
    is_sliced: bool
    is_kept: bool = True


def _reads(model: nn.Module, count: int) -> list[_Read]:
    """Return what is read of every table for a text of this many tokens.

    Raises:
        ConfigError: A table does not have the row, or the text is too long for something else.
    """
    found: list[_Read] = []
    # Matrices that are divided over ranks (``sharding``) have no storage to point to, and are no tables of positions.
    whole = (each for each in (*model.parameters(), *model.buffers()) if not hasattr(each, "full_tensor"))
    tables = {each.untyped_storage().data_ptr() for each in whole}

    def note(table: Tensor, dimension: int, index: Tensor | None) -> None:
        if index is not None and index.dtype is not torch.bool and index.numel():
            found.append(_Read(table.shape[dimension], int(index.max()), False))
            if found[-1].row >= found[-1].size:  # on a GPU, reading it would end the process
                raise IndexError(f"row {found[-1].row} of {found[-1].size}")

    class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
        ) -> Any:
            if function is aten.embedding.default:
                note(args[0], 0, args[1])
            elif function in (aten.index_select.default, aten.gather.default):
                note(args[0], args[1], args[2])
            elif function is aten.index.Tensor:
                for dimension, index in enumerate(args[1]):
                    note(args[0], dimension, index)
            elif function is aten.slice.Tensor and not hasattr(args[0], "full_tensor"):
                is_kept = args[0].untyped_storage().data_ptr() in tables
                size = args[0].shape[args[1]] if len(args) > 1 else len(args[0])
                start, end, _ = slice(*args[2:4]).indices(size)
                found.extend(_Read(size, row, True, is_kept) for row in (end - 1, size - start - 1))
            return function(*args, **(kwargs or {}))

    with Reads():  # type: ignore[no-untyped-call]
        text = torch.full((1, count), FIRST_TOKEN, device=_device(model))
        text[0, -1] = some_text(model)[0, -1]
        _logits(model, text)
    return found


def _logits(model: nn.Module, text: Tensor, mask: Tensor | None = None) -> Tensor:
    mask = torch.ones_like(text) if mask is None else mask
    try:
        return cast(Tensor, cast(Any, model)(input_ids=text, attention_mask=mask).logits)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{type(model).__name__}: it computes nothing of a text alone ({_in_short(error)}); take another model"
        ) from error


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def writes_the_same(found: Tensor, expected: Tensor) -> bool:
    """Compare logits as long as both wrote the same: behind two tokens of one likelihood stand two texts."""
    count = min(len(found), len(expected))
    agree = (found[:count].argmax(-1) == expected[:count].argmax(-1)).tolist()
    count = next((place + 1 for place, same in enumerate(agree) if not same), count)
    change = (found[:count] - expected[:count]).float().norm() / expected[:count].float().norm().clamp_min(1e-12)
    return bool(change <= (PADDING_CHANGE_HALF if expected.dtype is torch.bfloat16 else PADDING_CHANGE))  # not if NaN
