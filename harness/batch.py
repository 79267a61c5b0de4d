"""From examples to batches: each lane's own order, padded together into one batch for the frozen model.

Shapes: K lanes, B examples per lane, T tokens (padded to the longest, rounded up to ``multiple``), N loss positions,
the same number per lane, lanes in order. Positions that only fill up carry weight 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.task import IGNORE, Example, ModelKind, TaskData


@dataclass(frozen=True)
class Batch:
    """One forward pass of K lanes.

    Attributes:
        input_ids: (K B, T).
        attention_mask: (K B, T) where padding must be hidden, else ``None`` (a causal model never looks ahead at it).
        index: (N,) rows of the flattened (K B T) positions whose logits are wanted; ``None``: one output per example.
        targets: (N,) token ids, class indices or numbers.
        weights: (N,) share of each position in its lane's mean loss over the whole optimizer step.
        lanes: K.
        tokens: Real tokens per lane, without padding.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    index: Tensor | None
    targets: Tensor
    weights: Tensor
    lanes: int
    tokens: tuple[int, ...]

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        moved = [move(each) for each in (self.input_ids, self.attention_mask, self.index, self.targets, self.weights)]
        return Batch(*moved, self.lanes, self.tokens)  # type: ignore[arg-type]


def draw(data: TaskData, batch_size: int, seed: int) -> Iterator[list[Example]]:
    """Yield one lane's examples per optimizer step, without end.

    A sequence is shuffled anew each epoch; a batch that reaches its end goes on into the next epoch, so that every batch
    is full. The order depends on the seed alone, so that methods can be compared in pairs. A plain iterable is read in
    its own order, again from the start when it ends.
    """

    def stream() -> Iterator[Example]:
        for epoch in itertools.count():
            if isinstance(data.train, Sequence):
                generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
                for row in torch.randperm(len(data.train), generator=generator).tolist():
                    yield data.train[row]
            else:
                yield from data.train

    examples = stream()
    while True:
        yield list(itertools.islice(examples, batch_size))


def collate(
    rows: Sequence[Sequence[Example]], kind: ModelKind, pad_token: int, micro_batch_size: int = 0, multiple: int = 1
) -> list[Batch]:
    """Return the micro-batches of one optimizer step.

    Args:
        rows: Each lane's examples, B each.
        kind: What labels mean.
        pad_token: Fills ``input_ids``.
        micro_batch_size: Examples per lane and forward pass; 0: all.
        multiple: T is rounded up to a multiple of this.
    """
    size = micro_batch_size or len(rows[0])
    starts = range(0, len(rows[0]), size)
    if kind in (ModelKind.CAUSAL_LM, ModelKind.FROM_SCRATCH):
        totals = [sum(sum(label != IGNORE for label in e.labels[1:]) for e in lane) for lane in rows]  # type: ignore[index]
        return [_language(tuple(lane[s : s + size] for lane in rows), totals, pad_token, multiple) for s in starts]
    return [
        _sequence(tuple(lane[s : s + size] for lane in rows), len(rows[0]), kind, pad_token, multiple) for s in starts
    ]


def _pad(rows: Sequence[Sequence[Example]], pad_token: int, multiple: int) -> tuple[Tensor, Tensor]:
    """Return input ids (K B, T) and lengths (K B,), padded on the right."""
    flat = [example.input_ids for lane in rows for example in lane]
    lengths = torch.tensor([len(ids) for ids in flat])
    width = -(-int(lengths.max()) // multiple) * multiple
    ids = torch.full((len(flat), width), pad_token, dtype=torch.long)
    for row, each in enumerate(flat):
        ids[row, : len(each)] = torch.as_tensor(each)
    return ids, lengths


def _tokens(rows: Sequence[Sequence[Example]]) -> tuple[int, ...]:
    return tuple(sum(len(example.input_ids) for example in lane) for lane in rows)


def _language(rows: Sequence[Sequence[Example]], totals: Sequence[int], pad_token: int, multiple: int) -> Batch:
    """Gather the positions *before* each labelled token: their logits predict it."""
    ids, _ = _pad(rows, pad_token, multiple)
    width, places, wanted = ids.shape[1], [], []
    row = 0
    for lane in rows:
        place: list[int] = []
        want: list[int] = []
        for example in lane:
            labels: Sequence[int] = example.labels  # type: ignore[assignment]
            for position in range(1, len(labels)):
                if labels[position] != IGNORE:
                    place.append(row * width + position - 1)
                    want.append(labels[position])
            row += 1
        places.append(place)
        wanted.append(want)
    count = max(1, *map(len, places))
    lanes = len(rows)
    index, targets, weights = (torch.zeros(lanes, count, dtype=t) for t in (torch.long, torch.long, torch.float32))
    for lane_number in range(lanes):
        n = len(places[lane_number])
        # Filling positions point into the lane's own rows, so that a lane never touches another's activations.
        index[lane_number] = lane_number * len(rows[0]) * width
        index[lane_number, :n] = torch.tensor(places[lane_number], dtype=torch.long)
        targets[lane_number, :n] = torch.tensor(wanted[lane_number], dtype=torch.long)
        weights[lane_number, :n] = 1.0 / max(1, totals[lane_number])
    return Batch(ids, None, index.flatten(), targets.flatten(), weights.flatten(), lanes, _tokens(rows))


def _sequence(rows: Sequence[Sequence[Example]], total: int, kind: ModelKind, pad_token: int, multiple: int) -> Batch:
    ids, lengths = _pad(rows, pad_token, multiple)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    dtype = torch.long if kind is ModelKind.CLASSIFICATION else torch.float32
    targets = torch.tensor([example.labels for lane in rows for example in lane], dtype=dtype)
    weights = torch.full((len(targets),), 1.0 / total)
    return Batch(ids, mask, None, targets, weights, len(rows), _tokens(rows))
