"""The processes that train one trial together: *ranks*, one per device, of one host. Mostly there is one.

All of them run the same program on the same trial, step for step. The base model is divided over them (``sharding``);
what trains is small, and each has all of it. They share an update's examples: a rank runs some of the micro-batches,
and the sums of what all found are every rank's. So each does the same update, and the result is that of one rank up to
rounding. What a clock or the outside decides, the first decides for all.

What is not here: how the processes come to be, and what happens when one of them ends (``running.followers``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from harness.engine.batch import Batch
from harness.errors import HarnessError

SILENCE = timedelta(minutes=30)  # that a rank waits for the others: loading a model may take the first that long


class Ranks:
    """One process by itself: nothing to share, nothing to agree on.

    Attributes:
        number: Which rank this process is; the first is 0.
        count: How many there are.
    """

    number = 0
    count = 1

    def rows_at_once(self, batch_size: int, most: int) -> int:
        """Return how many examples a forward pass has, at most ``most``, so that every rank gets some."""
        return most

    def part(self, batches: Sequence[Batch]) -> Sequence[Batch | None]:
        """Return an update's micro-batches, ``None`` in the place of those that another rank runs."""
        return batches

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank the sums over all ranks, in place."""

    def total(self, value: int) -> int:
        """Return the sum of a number over all ranks."""
        return value

    def agree(self, value: bool) -> bool:
        """Return what the first says."""
        return value

    def align(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank what the first has, bit for bit, in place."""

    def told(self, make: Callable[[], Any]) -> Any:
        """Return what the first makes, of plain JSON types; if it fails, all fail."""
        return make()


class Together(Ranks):
    """Several processes.

    Args:
        number: Which rank this process is.
        count: How many there are.
        store: Where they find each other.
        device: This rank's.
    """

    def __init__(self, number: int, count: int, store: Any, device: str) -> None:
        self.number, self.count = number, count
        if Path("/sys/class/net/lo").exists():  # all are on this host, and its name may lead nowhere
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        backend = "gloo"
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
            torch.cuda.init()  # type: ignore[no-untyped-call]  # else a mesh of devices chooses one by itself
            backend = "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=SILENCE)

    def rows_at_once(self, batch_size: int, most: int) -> int:
        """Return at most a rank's share of a batch."""
        return min(most, -(-batch_size // self.count))

    def part(self, batches: Sequence[Batch]) -> list[Batch | None]:
        """Return every N-th batch, N being the number of ranks.

        Where they do not go round, the last is run once more, without weight: the model is divided, and all ranks must
        be there whenever one of them runs it.
        """
        mine: list[Batch | None] = [
            batch if place % self.count == self.number else None for place, batch in enumerate(batches)
        ]
        if self.number >= len(batches) % self.count > 0:
            mine[-1] = replace(batches[-1], weights=torch.zeros_like(batches[-1].weights))
        return mine

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Sum all of them in one exchange."""
        for group in _alike(tensors):
            flat = torch.cat([tensor.flatten() for tensor in group])
            dist.all_reduce(flat)
            _spread(flat, group)

    def total(self, value: int) -> int:
        """Return the sum."""
        number = torch.tensor(value)
        dist.all_reduce(number)
        return int(number)

    def agree(self, value: bool) -> bool:
        """Hear the first."""
        said = torch.tensor(value, dtype=torch.uint8)
        dist.broadcast(said, 0)
        return bool(said)

    def align(self, tensors: Iterable[Tensor]) -> None:
        """Take over the first's bytes."""
        for tensor in tensors:
            self.send(tensor)

    def send(self, tensor: Tensor) -> None:
        """Copy the first's tensor into everybody's."""
        raw = tensor.detach().contiguous().view(-1).view(torch.uint8)
        dist.broadcast(raw, 0)
        if raw.data_ptr() != tensor.data_ptr():
            tensor.detach().copy_(raw.view(tensor.dtype).view(tensor.shape))

    def told(self, make: Callable[[], Any]) -> Any:
        """Hear what the first has made.

        Raises:
            HarnessError: The first failed. It raises what it failed with.
        """
        error: Exception | None = None
        said: dict[str, Any] = {}
        if self.number == 0:
            try:
                said = {"made": make()}
            except Exception as caught:  # noqa: BLE001 - raised below, once the others know
                error, said = caught, {"error": f"{type(caught).__name__}: {caught}"}
        length = torch.tensor(0)
        content = torch.frombuffer(bytearray(json.dumps(said).encode()), dtype=torch.uint8)
        length.fill_(len(content))
        dist.broadcast(length, 0)
        content = content if self.number == 0 else torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(content, 0)
        if error is not None:
            raise error
        said = json.loads(content.numpy().tobytes())
        if "error" in said:
            raise HarnessError(f"rank 0 failed with {said['error']}")
        return said["made"]


def _alike(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Return tensors grouped by dtype."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    return list(groups.values())


def _spread(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copy pieces of one tensor into many."""
    pieces = torch.split(flat, [tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)])
