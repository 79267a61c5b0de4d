"""From examples to batches: each lane's own order, padded together into one batch for the frozen model.

Shapes: K lanes, B examples per lane, T tokens (padded to the longest), N loss positions per lane, lanes in order.
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
from harness.errors import DataError

GPU_MULTIPLE = 16  # tokens: on a GPU batches are padded to few different forms, since each is captured apart


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
        index: (K N,) rows of the flattened (K B T) positions whose logits are wanted; ``None``: one output per example.
        targets: (K N,) token ids, class indices or numbers.
        weights: (K N,) share of each position in its lane's mean loss over the whole optimizer step.
        lanes: K.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    token_type_ids: Tensor | None
    index: Tensor | None
    targets: Tensor
    weights: Tensor
    lanes: int

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
        tensors = (self.input_ids, self.attention_mask, self.token_type_ids, self.index, self.targets)
        return (self.lanes, *(None if tensor is None else tuple(tensor.shape) for tensor in tensors))


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
    multiple: int = 1,
    causal: bool = False,
) -> list[Batch]:
    """Return the micro-batches of one optimizer step.

    Args:
        lanes: Each lane's rows, B each.
        pad_token: Fills ``input_ids``.
        rows_at_once: Examples per lane and forward pass; ``None``: all.
        multiple: T, and N per example, are rounded up to a multiple of this, so that batches of few forms occur.
        causal: No token of the model sees the padding behind it, so no mask is needed.
    """
    size = rows_at_once or len(lanes[0])
    totals = [sum(len(row.targets) for row in rows) for rows in lanes]
    starts = range(0, len(lanes[0]), size)
    groups = [[rows[start : start + size] for rows in lanes] for start in starts]
    return [_collate(group, totals, pad_token, multiple, causal) for group in groups]


def _collate(
    lanes: Sequence[Sequence[Row]], totals: Sequence[int], pad_token: int, multiple: int, causal: bool
) -> Batch:
    flat = [row for rows in lanes for row in rows]
    lengths = np.asarray([len(row.ids) for row in flat])
    width = _round_up(int(lengths.max()), multiple)
    ids = _padded([row.ids for row in flat], width, pad_token)
    types = [row.types for row in flat if row.types is not None]
    counts = [sum(len(row.targets) for row in rows) for rows in lanes]
    per_position = flat[0].places is not None
    # Loss positions are as many in every lane; the filling ones point into the lane's own rows.
    count = _round_up(max(1, *counts), multiple * len(lanes[0])) if per_position else len(lanes[0])
    index = np.zeros((len(lanes), count), dtype=np.int64)
    targets = np.zeros((len(lanes), count), dtype=flat[0].targets.dtype)
    weights = np.zeros((len(lanes), count), dtype=np.float32)
    for lane, rows in enumerate(lanes):
        first = lane * len(rows)
        index[lane] = first * width
        if per_position:
            index[lane, : counts[lane]] = np.concatenate(
                [(first + b) * width + row.places for b, row in enumerate(rows) if row.places is not None]
            )
        targets[lane, : counts[lane]] = np.concatenate([row.targets for row in rows])
        weights[lane, : counts[lane]] = 1.0 / max(1, totals[lane])
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


def _padded(rows: Sequence[np.ndarray[Any, Any]], width: int, fill: int) -> np.ndarray[Any, Any]:
    """Return rows of token numbers as one array (rows, width)."""
    array = np.full((len(rows), width), fill, dtype=np.int64)
    for place, row in enumerate(rows):
        array[place, : len(row)] = row
    return array


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
