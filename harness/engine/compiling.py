"""When compiled code runs as such. The compiler takes four seconds to load, and is loaded where something is compiled.

What is not here: what is compiled (``pack``), whether that pays (``running.worker``).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def compiling(wanted: bool) -> Iterator[None]:
    """Run compiled code as such within the block if it is wanted, or else as if it never had been compiled."""
    if wanted or "torch._dynamo" in sys.modules:
        with torch.compiler.set_stance("default" if wanted else "force_eager"):
            yield
    else:  # nothing can have been compiled yet
        yield
