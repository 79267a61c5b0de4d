"""Capturing what a piece of work launches on a GPU in a CUDA graph, to be replayed without Python."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def capture(
    work: Callable[[], Result], stream: torch.cuda.Stream, pool: Any = None
) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Return the captured work, and what it returned: tensors that every replay fills. Nothing is computed yet.

    Args:
        work: Waits for nothing on the device; its inputs stay where they are.
        stream: A stream of the device it runs on, and not that device's default one.
        pool: Memory that it shares with other captured work, of which only one runs at a time and whose results are
            read before the next one runs, from ``torch.cuda.graph_pool_handle()``; ``None``: memory of its own.

    Raises:
        RuntimeError: The work does something that cannot be captured.
        UserWarning: It launched nothing on this stream. Replays would do nothing either, without a word.
    """
    graph = torch.cuda.CUDAGraph()
    with warnings.catch_warnings(), _no_garbage_collection():
        warnings.filterwarnings("error", message="The CUDA Graph is empty")
        with torch.cuda.graph(graph, stream=stream, pool=pool):
            result = work()
    return graph, result


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect garbage now and not within: freeing an older captured graph would break the capture."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
