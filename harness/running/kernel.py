"""What the kernel says about processes that it ended for want of memory.

A process that was killed did not say why. Out of memory is believed only where the kernel has counted or logged it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
EVERYWHERE = Path("/proc/vmstat")
LOG = Path("/dev/kmsg")


class MemoryKills:
    """The kernel's counts of processes that it ended for want of memory, seen again and again."""

    def __init__(self) -> None:
        self._before = counts()

    def why(self, pid: int) -> str:
        """Return the kernel's word that a process was ended for memory since the last look; empty if it says nothing.

        Args:
            pid: Of the process that is gone.
        """
        before, self._before = self._before, counts()
        if f"Killed process {pid} " in log():
            return f"the kernel's log says that it ended process {pid} for want of memory"
        for name, count in self._before.items():
            if count > before.get(name, count):
                return f"the kernel ended a process for want of memory (oom_kill {before[name]} -> {count} in {name})"
        return ""


def counts() -> Mapping[str, int]:
    """Return ``{file: processes ended for memory}`` of this process's control group; of the machine if it has none."""
    files = [*_group_files()]
    found = {str(file): count for file in files if (count := _count(file)) is not None}
    return found or {str(EVERYWHERE): count for count in [_count(EVERYWHERE)] if count is not None}


def _group_files() -> list[Path]:
    """Return the files that count for this process's group, in either version of control groups."""
    try:
        lines = OWN_GROUPS.read_text().splitlines()
    except OSError:
        return []
    files = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            files.append(CGROUPS / path.lstrip("/") / "memory.events")
        elif "memory" in controllers.split(","):
            files.append(CGROUPS / "memory" / path.lstrip("/") / "memory.oom_control")
    return files


def _count(file: Path) -> int | None:
    try:
        values = dict(line.split(maxsplit=1) for line in file.read_text().splitlines())
        return int(values["oom_kill"])
    except (OSError, ValueError, KeyError):
        return None


def log() -> str:
    """Return the kernel's log, as far as this user may read it."""
    try:
        stream = os.open(LOG, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return ""
    lines: list[bytes] = []
    try:
        while True:
            try:
                lines.append(os.read(stream, 1 << 16))
            except BlockingIOError:
                break
            except OSError:  # older lines were overwritten while we read
                continue
    finally:
        os.close(stream)
    return b"".join(lines).decode(errors="replace")
