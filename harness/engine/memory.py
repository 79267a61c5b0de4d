"""Memory: what failed must be gone before the next try starts, and what stays is not searched for garbage."""

from __future__ import annotations

import gc
import traceback

import torch


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
