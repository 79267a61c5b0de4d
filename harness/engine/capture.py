"""Capturing what a piece of work launches on a GPU in a CUDA graph, to be replayed without Python."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def capture(work: Callable[[], Result], stream: torch.cuda.Stream) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Return the captured work, and what it returned: tensors that every replay fills. Nothing is computed yet.

    Args:
        work: Waits for nothing on the device; its inputs stay where they are.
        stream: A stream of the device it runs on, and not that device's default one.

    Raises:
        RuntimeError: The work does something that cannot be captured.
        UserWarning: It launched nothing on this stream. Replays would do nothing either, without a word.
    """
    graph = torch.cuda.CUDAGraph()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The CUDA Graph is empty")
        with torch.cuda.graph(graph, stream=stream):
            result = work()
    return graph, result
