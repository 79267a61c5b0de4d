"""From examples to batches: each lane's own order, padded together into one batch for the frozen model.

Shapes: K lanes, B examples per lane, T tokens (padded to the longest), N loss positions per lane, lanes in order. Where
texts lie flat, a lane's texts follow each other in one row of T tokens, and there are K rows instead of K B.
Positions that only fill up carry weight 0.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from harness.contract.task import IGNORE, Example, ModelKind, TaskData
from harness.engine.flat import positions
from harness.engine.forms import Forms, Size, together
from harness.errors import DataError


class Row(NamedTuple):
    """An example as arrays.

    Attributes:
        ids: Token ids, (T,).
        places: Positions whose logits are wanted: one before each labelled token, (N,); ``None``: one output
            per row.
        targets: What they must predict, (N,) token ids; (1,) class index or number.
        types: Token types, (T,), of models that want them.
    """

    ids: np.ndarray[Any, Any]
    places: np.ndarray[Any, Any] | None
    targets: np.ndarray[Any, Any]
    types: np.ndarray[Any, Any] | None = None


@dataclass(frozen=True)
class Batch:
    """One forward pass of K lanes.

    Attributes:
        input_ids: (K B, T).
        attention_mask: (K B, T) where padding must be hidden; ``None`` where there is none, and for a causal model, in
            which no token sees the padding behind it.
        token_type_ids: (K B, T), of models that want them.
        index: (K N,) rows of the flattened (K B T) positions whose logits are wanted, or by which a classifier judges
            texts that lie flat; ``None``: one output per row.
        targets: (K N,) token ids, class indices or numbers.
        weights: (K N,) share of each position in its lane's mean loss over the whole optimizer step.
        lanes: K.
        position_ids: (K, T) of each token in its text, as the model counts them, where texts lie flat.
        boundaries: Where each text begins and the last one ends in the flattened (K T) tokens, int32.
        longest: No text that lies flat has more tokens; 0: each text has a row of its own.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    token_type_ids: Tensor | None
    index: Tensor | None
    targets: Tensor
    weights: Tensor
    lanes: int
    position_ids: Tensor | None = None
    boundaries: Tensor | None = None
    longest: int = 0

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with a function applied to every tensor."""
        changes = {name: function(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **cast(Any, changes))

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        if device.type == "cuda":  # from pinned memory a copy waits for nothing
            return self.map(lambda tensor: tensor.pin_memory().to(device, non_blocking=True))
        return self.map(lambda tensor: tensor.to(device))

    def shape(self) -> tuple[Any, ...]:
        """Return a key that batches of the same form share."""
        values = vars(self).values()
        return tuple(tuple(value.shape) if isinstance(value, Tensor) else value for value in values)


def draw(data: TaskData, kind: ModelKind, batch_size: int, seed: int) -> Iterator[list[Row]]:
    """Yield one lane's rows per optimizer step, without end.

    A sequence is shuffled anew each epoch; a batch that reaches its end goes on into the next epoch, so that every
    batch is full. The order depends on the seed alone, so that methods can be compared in pairs. A plain iterable is
    read in its own order, again from the start when it ends.

    Raises:
        DataError: There is nothing to read, or nothing a second time.
    """

    def stream() -> Iterator[Row]:
        for epoch in itertools.count():
            rows = epoch_of(epoch)
            first = next(rows, None)
            if first is None:
                raise DataError(
                    "TaskData.train holds no examples"
                    if epoch == 0
                    else "TaskData.train ends before the training does and cannot be read again; "
                    "give a list, or an object whose __iter__ starts anew, instead of a generator"
                )
            yield first
            yield from rows

    def epoch_of(epoch: int) -> Iterator[Row]:
        if isinstance(data.train, Sequence):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            for place in torch.randperm(len(data.train), generator=generator).tolist():
                if place not in data.rows:
                    data.rows[place] = encode(data.train[place], kind)
                yield data.rows[place]
        else:
            yield from (encode(example, kind) for example in data.train)

    rows = stream()
    while True:
        yield list(itertools.islice(rows, batch_size))


def encode(example: Example, kind: ModelKind) -> Row:
    """Return an example as arrays."""
    ids = np.asarray(example.input_ids, dtype=np.int64)
    if kind in (ModelKind.CAUSAL_LM, ModelKind.FROM_SCRATCH):
        labels = np.asarray(example.labels, dtype=np.int64)
        labelled = np.flatnonzero(labels[1:] != IGNORE)
        return Row(ids, labelled, labels[labelled + 1])
    dtype = np.int64 if kind is ModelKind.CLASSIFICATION else np.float32
    types = None if example.token_type_ids is None else np.asarray(example.token_type_ids, dtype=np.int64)
    return Row(ids, None, np.asarray([example.labels], dtype=dtype), types)


def collate(
    lanes: Sequence[Sequence[Row]],
    pad_token: int,
    rows_at_once: int | None = None,
    forms: Forms = Forms(),  # noqa: B008 - frozen
    causal: bool = False,
    uncounted: int = -1,
) -> list[Batch]:
    """Return the micro-batches of one optimizer step.

    Args:
        lanes: Each lane's rows, B each.
        pad_token: Fills ``input_ids``.
        rows_at_once: Examples per lane and forward pass; ``None``: all.
        forms: To what sizes they are padded, and whether texts lie flat.
        causal: No token of the model sees the padding behind it, so no mask is needed.
        uncounted: Where texts lie flat, the token that has no position of its own (``flat.Layout``).
    """
    lanes = _complete(lanes, pad_token)
    totals = [sum(len(row.targets) for row in rows) for rows in lanes]
    groups = micro_batches(lanes, rows_at_once)
    sizes = [size_of(group, flat=bool(forms.longest)) for group in groups]
    if forms.multiple > 1:  # one form for all of a step's, so that steps of few forms arise
        sizes = [forms.fit(together(sizes), len(groups[0][0]))] * len(groups)
    if forms.longest:
        return [
            _flat(_judged(group, pad_token, causal), totals, size, forms.longest, uncounted)
            for group, size in zip(groups, sizes, strict=True)
        ]
    return [_collate(group, totals, pad_token, size, causal) for group, size in zip(groups, sizes, strict=True)]


def _complete(lanes: Sequence[Sequence[Row]], pad_token: int) -> list[list[Row]]:
    """Return rows with a token where a text has none, and with token types where another one's are given."""
    are_given = any(row.types is not None for rows in lanes for row in rows)

    def complete(row: Row) -> Row:
        if not len(row.ids):
            row = row._replace(ids=np.asarray([pad_token]), types=None)
        return row._replace(types=np.zeros_like(row.ids)) if are_given and row.types is None else row

    return [[complete(row) for row in rows] for rows in lanes]


def micro_batches(lanes: Sequence[Sequence[Row]], size: int | None) -> list[list[Sequence[Row]]]:
    """Return the lanes' rows in groups of ``size`` rows a lane; ``None``: all."""
    size = size or len(lanes[0])
    return [[rows[start : start + size] for rows in lanes] for start in range(0, len(lanes[0]), size)]


def size_of(lanes: Sequence[Sequence[Row]], flat: bool) -> Size:
    """Return what a batch of these rows needs at least."""
    combine = sum if flat else max
    tokens = max(int(combine(len(row.ids) for row in rows)) for rows in lanes)
    return Size(tokens, max(1, *(sum(len(row.targets) for row in rows) for rows in lanes)))


def _collate(lanes: Sequence[Sequence[Row]], totals: Sequence[int], pad_token: int, size: Size, causal: bool) -> Batch:
    flat = [row for rows in lanes for row in rows]
    lengths = np.asarray([len(row.ids) for row in flat])
    width, count = size
    ids = _padded([row.ids for row in flat], width, pad_token)
    types = [row.types for row in flat if row.types is not None]
    per_position = flat[0].places is not None
    starts = np.arange(len(flat)).reshape(len(lanes), -1) * width
    index, targets, weights = _wanted(lanes, totals, starts, count if per_position else len(lanes[0]))
    is_hidden = not (causal or per_position or (lengths == width).all())
    mask = (np.arange(width) < lengths[:, None]).astype(np.int64) if is_hidden else None
    return Batch(
        torch.from_numpy(ids),
        None if mask is None else torch.from_numpy(mask),
        torch.from_numpy(_padded(types, width, 0)) if types else None,
        torch.from_numpy(index.ravel()) if per_position else None,
        torch.from_numpy(targets.ravel()),
        torch.from_numpy(weights.ravel()),
        len(lanes),
    )


def _judged(lanes: Sequence[Sequence[Row]], pad_token: int, causal: bool) -> list[list[Row]]:
    """Return rows that say where the one token is by which a classifier judges a text.

    It is the first one, or, of a causal model, the last that it does not take for padding.
    """

    def place(ids: np.ndarray[Any, Any]) -> int:
        return int(np.flatnonzero(ids != pad_token).max(initial=0)) if causal else 0

    return [
        [row if row.places is not None else row._replace(places=np.asarray([place(row.ids)])) for row in rows]
        for rows in lanes
    ]


def _flat(lanes: Sequence[Sequence[Row]], totals: Sequence[int], size: Size, longest: int, uncounted: int) -> Batch:
    """Lay each lane's texts one after another in one row, and fill it up with texts that nobody asks about.

    These are of a token that the lane's texts have: the one for padding may be zero everywhere, and some models have no
    gradient there.
    """
    tokens, count = size
    longest = max(longest, *(len(row.ids) for rows in lanes for row in rows))
    fill = -(-tokens // longest)  # texts that the padding is split into: no text may be longer than the longest
    ids = np.concatenate(
        [_padded([np.concatenate([row.ids for row in rows])], tokens, rows[0].ids[0]) for rows in lanes]
    )
    types = [[row.types for row in rows if row.types is not None] for rows in lanes]
    starts = np.zeros((len(lanes), len(lanes[0]) + fill + 1), dtype=np.int64)  # of each text in its lane, and the end
    for lane, rows in enumerate(lanes):
        ends = np.cumsum([len(row.ids) for row in rows])
        starts[lane, 1 : len(rows) + 1] = ends
        starts[lane, len(rows) + 1 :] = np.minimum(ends[-1] + longest * np.arange(1, fill + 1), tokens)
    numbers = [positions(row, each, uncounted) for row, each in zip(ids, starts, strict=True)]
    starts += np.arange(len(lanes))[:, None] * tokens
    index, targets, weights = _wanted(lanes, totals, starts, count)
    boundaries = np.concatenate([starts[:, :-1].ravel(), [len(lanes) * tokens]]).astype(np.int32)
    return Batch(
        torch.from_numpy(ids),
        None,
        torch.from_numpy(_padded([np.concatenate(each) for each in types], tokens, 0)) if all(types) else None,
        torch.from_numpy(index.ravel()),
        torch.from_numpy(targets.ravel()),
        torch.from_numpy(weights.ravel()),
        len(lanes),
        torch.from_numpy(np.stack(numbers)),
        torch.from_numpy(boundaries),
        longest,
    )


def _wanted(
    lanes: Sequence[Sequence[Row]], totals: Sequence[int], starts: np.ndarray[Any, Any], count: int
) -> tuple[np.ndarray[Any, Any], ...]:
    """Return where logits are wanted, what they must predict and their weights, (K, count) each.

    ``starts`` are the places of each row's first token. Loss positions are as many in every lane; the filling ones
    point into the lane's own rows.
    """
    index = np.tile(starts[:, :1], count)
    targets = np.zeros((len(lanes), count), dtype=lanes[0][0].targets.dtype)
    weights = np.zeros((len(lanes), count), dtype=np.float32)
    for lane, rows in enumerate(lanes):
        here = np.concatenate([row.targets for row in rows])
        places = [start + row.places for start, row in zip(starts[lane], rows, strict=False) if row.places is not None]
        if places:
            index[lane, : len(here)] = np.concatenate(places)
        targets[lane, : len(here)] = here
        weights[lane, : len(here)] = 1.0 / max(1, totals[lane])
    return index, targets, weights


def _padded(rows: Sequence[np.ndarray[Any, Any]], width: int, fill: int) -> np.ndarray[Any, Any]:
    """Return rows of token numbers as one array (rows, width)."""
    array = np.full((len(rows), width), fill, dtype=np.int64)
    for place, row in enumerate(rows):
        array[place, : len(row)] = row
    return array
