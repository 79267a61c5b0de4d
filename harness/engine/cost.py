"""What a trial costs by itself: time, memory and arithmetic of a step, without data preparation or scoring.

A pack's time says little about one of its trials. So every method with its settings is run alone for a few steps, over
the same base model and batches, before its pack trains; what these steps change is thrown away.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.engine.lane import Lane
from harness.engine.pack import Pack
from harness.engine.resident import Base


@dataclass(frozen=True)
class SoloCost:
    """The cost of one trial alone.

    Attributes:
        step_seconds: Of one optimizer update; on a GPU in captured form, between device events. ``None`` where the
            trial has too few steps to time one.
        step_flops: Floating-point operations of the matrix products of one update, forward and backward.
        step_tokens: Tokens of one update.
        peak_memory_bytes: On a GPU allocated by PyTorch, on a CPU resident in the process; base model included.
        lane_bytes: What one more trial like this takes on a GPU; 0 on a CPU.
    """

    step_seconds: float | None
    step_flops: int
    step_tokens: int
    peak_memory_bytes: int
    lane_bytes: int


def measure_solo(base: Base, build: Callable[[], Lane]) -> SoloCost:
    """Run a few steps of a trial by itself, all on the same rows: others may have another form, to be captured anew.

    Args:
        base: The resident model.
        build: Makes the trial's lane; called once.
    """
    on_gpu = base.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        reserved_before = torch.cuda.memory_reserved(base.device)
    with PeakMemory(base.device) as peak:
        lane = build()
        lane.hold_rows()
        pack = Pack(base, [lane])
        with FlopCounterMode(display=False) as counter:
            pack.step()
        tokens = lane.train_tokens
        for _ in range(min(2, lane.steps - lane.done) if on_gpu else 0):  # captures, then replays once
            pack.step()
        seconds = _step_seconds(pack, min(5, lane.steps - lane.done), on_gpu)
    lane_bytes = torch.cuda.memory_reserved(base.device) - reserved_before if on_gpu else 0
    return SoloCost(seconds, counter.get_total_flops(), tokens, peak.bytes(), max(0, lane_bytes))


def _step_seconds(pack: Pack, steps: int, on_gpu: bool) -> float | None:
    """Return the seconds of a step: the mean between device events, or the median on a CPU; ``None`` without steps."""
    if steps <= 0:
        return None
    if on_gpu:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        stream = torch.cuda.current_stream(pack.base.device)
        start.record(stream)
        for _ in range(steps):
            pack.step()
        end.record(stream)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / steps
    samples = []
    for _ in range(steps):
        begin = time.perf_counter()
        pack.step()
        samples.append(time.perf_counter() - begin)
    return sorted(samples)[len(samples) // 2]


def lanes_that_fit(base: Base, lane_bytes: int) -> int:
    """Return how many trials of this size fit into the GPU's free memory, with a fifth to spare."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(base.device)
    return max(1, int(0.8 * free / max(1, lane_bytes)))


class PeakMemory:
    """The largest memory in use within a ``with`` block: of the device on a GPU, resident in this process on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device, self._most, self._stop = device, 0, threading.Event()

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            threading.Thread(target=self._sample, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._most = self.bytes()
        self._stop.set()

    def _sample(self) -> None:
        process = psutil.Process()
        while not self._stop.wait(0.02):
            self._most = max(self._most, process.memory_info().rss)

    def bytes(self) -> int:
        """Return the peak so far."""
        if self._stop.is_set():
            return self._most
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return max(self._most, int(psutil.Process().memory_info().rss))
