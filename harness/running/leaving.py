"""Leaving in time: whoever asks a command to stop gets an answer, whatever code is running.

Libraries swallow ``KeyboardInterrupt`` (imports that turn whatever happens into an error of their own, ``except:``),
and some calls do not come back soon. So a request to stop has an end, at which the process goes. Workers notice, and
save.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from typing import NoReturn

ANSWER_SECONDS = 2.5  # that a process has to leave, unless it takes more

_end: float | None = None  # when this process is gone at the latest


def leave(code: int) -> NoReturn:
    """End the process at once, without taking down what was imported, which may take seconds."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def leave_within(seconds: float, code: int, message: str) -> None:
    """Begin to leave: a process that has not ended by itself in time says a message and ends. Can handle a signal."""
    global _end
    if _end is not None:  # asked again: at once
        seconds = 0.0
    _end = time.monotonic() + seconds
    threading.Thread(target=_watch, args=(code, message), daemon=True).start()


def take(seconds: float) -> None:
    """Have this much time from now on, if the process is leaving."""
    global _end
    if _end is not None:
        _end = time.monotonic() + seconds


def stay() -> None:
    """Take it back: the request was answered otherwise."""
    global _end
    _end = None


def _watch(code: int, message: str) -> None:
    while _end is not None:
        left = _end - time.monotonic()
        if left <= 0:
            os.write(2, f"{message}\n".encode())
            leave(code)
        time.sleep(min(left, 0.1))
