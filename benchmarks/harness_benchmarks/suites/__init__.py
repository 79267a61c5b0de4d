"""The built-in suites: every TOML file beside this one."""

from __future__ import annotations

from pathlib import Path

from harness import hookimpl


@hookimpl
def harness_register_suites() -> list[Path]:
    """Register every suite of this folder."""
    return sorted(Path(__file__).parent.glob("*.toml"))
