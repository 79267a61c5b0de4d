"""Whether a resident base model is still the pretrained one: whoever writes to it falsifies every later trial.

What is not here: who trained when it was changed, and what becomes of the others (``running.worker``).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from harness.engine.resident import Base

WORDS = (torch.int64, torch.int32, torch.int16, torch.uint8)


class Seal:
    """The sums over the bits of all frozen weights of a base, by name.

    Autograd's version counters would cost nothing, but what is written through ``.data`` passes them by. A sum reads
    the model once.

    Args:
        base: As it was loaded.
    """

    def __init__(self, base: Base) -> None:
        self.base = base
        self._sums = self._look()

    def broken(self) -> str:
        """Return the name of a weight that is not as it was, or nothing."""
        now = self._look()
        return next((name for name, value in self._sums.items() if now.get(name) != value), "")

    def _look(self) -> dict[str, int]:
        names, sums = zip(*((name, _sum(tensor)) for name, tensor in self._weights()), strict=True)
        return dict(zip(names, torch.stack(sums).tolist(), strict=True))

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        seen: set[int] = set()
        for name, slot in self.base.linear_slots.items():  # as adapters see it, and the bits of a quantised one
            for own, each in (*slot.linear[0].named_parameters(), *slot.linear[0].named_buffers()):
                seen.add(id(each))
                yield f"{name}.{own}", each
        yield from ((name, each) for name, each in self.base.model.named_parameters() if id(each) not in seen)


@torch.no_grad()
def _sum(tensor: Tensor) -> Tensor:
    values = tensor.detach().reshape(-1)
    for word in WORDS:  # the widest that divides it: wide ones are summed several times faster
        if not (values.nbytes % word.itemsize or values.storage_offset() * values.itemsize % word.itemsize):
            break
    return values.view(word).sum(dtype=torch.int64)
