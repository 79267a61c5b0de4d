"""When compiled code runs as such. The compiler takes four seconds to load, and is loaded where something is compiled.

What is not here: what is compiled (``pack``, ``losses``), whether that pays (``running.worker``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


class _Mode:
    """For the whole process, because the backward pass runs in threads of its own."""

    compiles = False


@contextmanager
def compiling(wanted: bool) -> Iterator[None]:
    """Run compiled code as such within the block if it is wanted, or else as if it never had been compiled."""
    before, _Mode.compiles = _Mode.compiles, wanted
    try:
        if wanted or "torch._dynamo" in sys.modules:
            with torch.compiler.set_stance("default" if wanted else "force_eager"):
                yield
        else:  # nothing can have been compiled yet
            yield
    finally:
        _Mode.compiles = before


def compiled_if_wanted(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function to be compiled, anew for every shape, when it first runs where compiled code is wanted."""
    compiled = cache(lambda: torch.compile(function, dynamic=False))

    @wraps(function)
    def run(*arguments: P.args, **named: P.kwargs) -> R:
        return (compiled() if _Mode.compiles else function)(*arguments, **named)

    return run
