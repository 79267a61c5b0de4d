"""How long a stranger's code may take where everybody waits for it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LOAD_SECONDS = 120.0  # for importing a plug-in, with whatever it imports, on a busy machine


class TookTooLong(BaseException):
    """Code did not come back in time. No ``Exception``, so that a plug-in's own ``except`` does not keep it."""


@contextmanager
def in_time(seconds: float = LOAD_SECONDS) -> Iterator[None]:
    """End the block by ``TookTooLong`` if it takes longer. Without effect outside of the main thread."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def late(*_: Any) -> None:
        raise TookTooLong(f"it did not come back within {seconds:g} seconds")

    begin = time.monotonic()
    handler = signal.signal(signal.SIGALRM, late)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:  # somebody else's alarm, which we held up
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (time.monotonic() - begin)), interval)
