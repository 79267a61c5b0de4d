"""Telling the observing hooks what happens: whatever they do, nothing is lost and nothing stops."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from typing import Any

from harness.planning.patience import TookTooLong, in_time
from harness.planning.registry import Registry

logger = logging.getLogger(__name__)

LEAST_SECONDS = 0.05  # of each observer, even when all together have no time left: most only take a note


class Observers:
    """Calls the observing hooks. A failing observer loses nothing and stops nothing; it is counted."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.failures = 0
        self._end: float | None = None

    def hurry(self, seconds: float) -> None:
        """Give all of them together only this much time from now on."""
        self._end = time.monotonic() + seconds

    def call(self, hook: str, **arguments: Any) -> list[Any]:
        """Call every implementation of a hook and return the results; an exception is logged with its plugin's name."""
        results: list[Any] = []
        for implementation in getattr(self.registry.hook, hook).get_hookimpls():
            try:
                with nullcontext() if self._end is None else in_time(max(LEAST_SECONDS, self._end - time.monotonic())):
                    results.append(implementation.function(*(arguments[name] for name in implementation.argnames)))
            except (Exception, TookTooLong) as error:
                self.failures += 1
                logger.warning("plugin %s, %s: %s: %s", implementation.plugin_name, hook, type(error).__name__, error)
                logger.debug("", exc_info=True)
        return results
