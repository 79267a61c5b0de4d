"""Who a file belongs to: a process on a machine, told from a later one with the same number."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path


@cache
def this_machine() -> str:
    """Return what processes share that can see each other: one boot of one machine, one namespace of processes.

    Where that cannot be told, a name that nobody else has.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return hashlib.sha256(f"{boot} {Path('/proc/self/ns/pid').readlink()}".encode()).hexdigest()[:12]
    except OSError:
        return f"unknown-{os.urandom(6).hex()}"  # equal to nobody's, so that nobody is taken for dead


def this_process() -> str:
    """Return this process's number and when it started."""
    return f"{os.getpid()}-{_start(os.getpid())}"


def is_running(process: object) -> bool:
    """Return whether a process of this machine, as ``this_process`` named it there, is still running."""
    number, _, start = str(process).partition("-")
    return number.isdigit() and start != "" and _start(int(number)) == start


def _start(number: int) -> str:
    """Return when a process started, in the kernel's ticks; empty if there is none, or only its remains."""
    try:
        after_name = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if after_name[0] in "ZX" else after_name[19]
