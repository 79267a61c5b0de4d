"""Learning-rate schedules of the recipes, as multipliers of the peak rate. Methods may bring their own."""

from __future__ import annotations

import math
from collections.abc import Callable


def schedule(shape: str, total_steps: int, warmup_steps: int) -> Callable[[int], float]:
    """Return the multiplier for update number ``step`` (from 0).

    Linear warm-up from ``1 / warmup_steps`` (so that no update is lost to a rate of zero), then constant, or decay to
    zero just after the last update, linear or half a cosine.
    """

    def multiplier(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        if shape == "constant":
            return 1.0
        if shape == "linear":
            return 1.0 - progress
        return 0.5 * (1.0 + math.cos(math.pi * progress))

    return multiplier
