"""What a worker takes of its machine while it trains: memory and processor, looked at once a second at most.

Nothing waits for it: a reading is a few system calls, and the device is not asked to finish what it is doing.
"""

from __future__ import annotations

import time

import psutil
import torch

EVERY_SECONDS = 1.0


class Readings:
    """Reads this process and its device, by the names that MLflow gives to system metrics.

    Args:
        device: On which it trains.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._process = psutil.Process()
        self._process.cpu_percent()  # counts from here on
        self._time = time.monotonic()
        self._last: dict[str, float] = {}

    def now(self) -> dict[str, float]:
        """Return the newest reading: the processor's use is a mean since the one before, 100 being one core."""
        elapsed = time.monotonic() - self._time
        if self._last and elapsed < EVERY_SECONDS:
            return self._last
        self._time += elapsed
        self._last = {
            "system/process_memory_usage_megabytes": self._process.memory_info().rss / 1e6,
            "system/process_cpu_utilization_percentage": self._process.cpu_percent(),
        }
        if self.device.type == "cuda":
            self._last["system/gpu_memory_usage_megabytes"] = torch.cuda.memory_allocated(self.device) / 1e6
        return self._last
