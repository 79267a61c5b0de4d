"""The executor of this machine. It is the harness' own, since every command has it; here it comes through the door."""

from __future__ import annotations

from harness import LocalExecutor, hookimpl


@hookimpl
def harness_register_executors() -> list[type[LocalExecutor]]:
    """Return the executor."""
    return [LocalExecutor]
