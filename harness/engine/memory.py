"""Memory: what failed must be gone before the next try starts, and what stays is not searched for garbage.

What does not fit at once is done in portions. What is not here: training with less memory (``training``).
"""

from __future__ import annotations

import gc
import logging
import traceback
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


def let_go(error: BaseException | None) -> None:
    """Clear the local variables of all frames that an error went through: they hold packs, graphs and batches."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def keep() -> None:
    """Take what is alive, libraries and a base model, out of later collections: it is most of the heap, and stays."""
    gc.collect()
    gc.freeze()


def release(device: torch.device) -> None:
    """Give memory that nothing uses any more back to the device."""
    gc.collect()  # a pack and its captured steps refer to each other
    if device.type == "cuda":
        torch.cuda.empty_cache()


class Portions:
    """Work on rows of which each has a result of its own: on all at once, or on as many as memory holds.

    How many these are is remembered for each model, since rows come longest first.
    """

    def __init__(self) -> None:
        self._most: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()

    def __call__(self, model: nn.Module, count: int, work: Callable[[slice], Result]) -> list[Result]:
        """Return what ``work`` makes of each portion, in the rows' order.

        Args:
            model: What works. Of one that is divided over ranks, the others are in the middle of the same work.
            count: Rows.
            work: Given which of them, does what can be repeated.

        Raises:
            torch.OutOfMemoryError: One row does not fit.
        """
        results: list[Result] = []
        done = 0
        while done < count:
            some = slice(done, min(count, done + self._most.get(model, count)))
            try:
                results.append(work(some))
            except torch.OutOfMemoryError as error:
                if some.stop - done == 1 or any(hasattr(each, "full_tensor") for each in model.parameters()):
                    raise
                let_go(error)
            else:
                done = some.stop
                continue
            release(next(model.parameters()).device)  # only here, where no frame of what failed is left
            self._most[model] = (some.stop - done + 1) // 2
            logger.warning("out of memory while scoring; goes on with %d texts at once", self._most[model])
        return results
