"""What a trial costs by itself: time, memory and arithmetic of a step, without data preparation or scoring.

A pack's time says little about one of its trials. So every method with its settings is run alone for a few steps, over
the same base model and batches, before its pack trains; what these steps change is thrown away.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

import psutil
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from harness.engine.lane import Lane
from harness.engine.memory import let_go, release
from harness.engine.pack import Pack, foresee
from harness.engine.resident import Base

logger = logging.getLogger(__name__)
MOST_LANES = 64  # of a pack: beyond it a GPU is full long since
FULL_STEP_FLOPS = 8e12  # of a pack's step that fills an H100: more lanes save at most 7 % (docs/performance.md)

OTHERS_BYTES = 2 * 2**30  # more than a context of CUDA's and the libraries' workspaces take


@dataclass(frozen=True)
class SoloCost:
    """The cost of one trial alone. What could not be measured is ``None``: a measurement decides nothing.

    Attributes:
        initialise_seconds: What the method took to make its adapters. Decompositions that an earlier trial
            left are not made again.
        step_seconds: Of one optimizer update; on a GPU in captured form, between device events.
        step_flops: Floating-point operations of the matrix products of one update, forward and backward.
        step_tokens: Tokens of one update.
        peak_memory_bytes: On a GPU allocated by PyTorch for this trial and its base model, without what others left in
            the process; on a CPU resident in the process.
        lane_bytes: What one more trial like this takes on a GPU, with the largest batches that it will see; ``None`` on
            a CPU.
        reasons: For each ``None``, why.
    """

    initialise_seconds: float | None = None
    step_seconds: float | None = None
    step_flops: int | None = None
    step_tokens: int | None = None
    peak_memory_bytes: int | None = None
    lane_bytes: int | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)


def measure_solo(base: Base, build: Callable[[], Lane]) -> SoloCost:
    """Run a few steps of a trial by itself, all on the same rows: others may have another form, to be captured anew.

    What the measuring itself makes fail is a reason, not an error; a lane that cannot be built is an error.

    Args:
        base: The resident model.
        build: Makes the trial's lane; called once.
    """
    others = _held_besides(base)
    lane = build()
    found: dict[str, Any] = {"initialise_seconds": lane.initialise_seconds}
    reasons: dict[str, str] = {}
    try:
        if lane.steps:
            _measure(base, lane, found, reasons)
            found["peak_memory_bytes"] -= others
        else:
            reasons["cost"] = "nothing trains, so there is no step"
            found["lane_bytes"] = 0 if base.device.type == "cuda" else None  # it takes no room from those beside it
    except Exception as error:
        if base.ranks.count > 1:  # the others are in the middle of it
            raise
        logger.warning("%s: its cost alone cannot be measured: %s", lane.trial.label, error)
        logger.debug("", exc_info=True)
        let_go(error)
        reasons["cost"] = f"measuring failed: {type(error).__name__}: {error}"
    base.clear()
    for name in (each.name for each in fields(SoloCost) if each.name != "reasons"):
        if found.get(name) is None:
            reasons.setdefault(name, reasons.get("cost", "not measured"))
    reasons.pop("cost", None)
    del lane
    release(base.device)
    return SoloCost(**found, reasons=reasons)


def _measure(base: Base, lane: Lane, found: dict[str, Any], reasons: dict[str, str]) -> None:
    on_gpu = base.device.type == "cuda"
    _, every = foresee(base, [lane])
    before = torch.cuda.memory_reserved(base.device) if on_gpu else 0
    with PeakMemory(base.device) as peak:
        lane.hold_rows()
        _, held = foresee(base, [lane])
        pack = Pack(base, [lane])
        try:
            counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
            pack.count(counter)
            found["step_flops"] = base.ranks.total(counter.get_total_flops())
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            reasons["step_flops"] = f"counting failed: {type(error).__name__}: {error}"
            logger.debug("", exc_info=True)
        pack.step()
        found["step_tokens"] = lane.train_tokens
        if on_gpu and lane.done < lane.steps:
            pack.step()
        found["step_seconds"] = _step_seconds(pack, min(5, lane.steps - lane.done), on_gpu)
    if on_gpu and (others := _held_by_others(base.device)) > OTHERS_BYTES:
        found["step_seconds"] = None
        reasons["step_seconds"] = (
            f"another process holds {others / 2**30:.1f} GiB of this GPU, and a step may have waited for its work"
        )
    elif found["step_seconds"] is None:
        reasons["step_seconds"] = f"a trial of {lane.steps} updates is too short to time one"
    found["peak_memory_bytes"] = peak.bytes()
    if on_gpu:
        taken = max(0, torch.cuda.memory_reserved(base.device) - before)
        # What memory a batch takes grows at most with its tokens; some does not grow, so this is on the safe side.
        growth = every.sizes[-1].tokens / held.sizes[-1].tokens if every.sizes and held.sizes else 1.0
        found["lane_bytes"] = int(taken * max(1.0, growth))
    else:
        reasons["lane_bytes"] = "only measured on GPUs"


def _held_besides(base: Base) -> int:
    """Return the bytes that this process has allocated on a GPU besides the base model: what other trials left."""
    if base.device.type != "cuda":
        return 0
    layers = (slot.linear[0] for slot in base.linear_slots.values())
    tensors = (each for module in (base.model, *layers) for each in (*module.parameters(), *module.buffers()))
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors if each.is_cuda}
    return max(0, torch.cuda.memory_allocated(base.device) - sum(storages.values()))


def _held_by_others(device: torch.device) -> int:
    """Return the bytes in use on a GPU that are not this process's tensors: other processes', and contexts."""
    free, total = torch.cuda.mem_get_info(device)
    return int(total - free - torch.cuda.memory_reserved(device))


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


def lanes_that_pay(step_flops: int | None) -> int:
    """Return how many trials with steps of this size fill a GPU: more of them take memory and save next to no time."""
    return min(MOST_LANES, max(1, math.ceil(FULL_STEP_FLOPS / step_flops))) if step_flops else MOST_LANES


def lanes_that_fit(base: Base, lane_bytes: int) -> int:
    """Return how many trials of this size fit into the GPU's free memory, with a fifth to spare."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(base.device)
    return max(1, int(0.8 * free / max(1, lane_bytes)))


def _products(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor | None, of_scores: int, of_values: int
) -> int:
    """Return the operations of an attention's matrix products.

    Key and value heads may be fewer than query heads. Hidden scores count: kernels for causal attention leave some of
    them out, but not the same ones.

    Args:
        query: (..., heads, T, D), or (T, heads, D) of texts that lie flat.
        key: With its own heads and length.
        value: The same.
        boundaries: Of the texts that lie flat.
        of_scores: Products of the shape of query times key.
        of_values: Products of the shape of scores times value.
    """
    widths = of_scores * query.shape[-1] + of_values * value.shape[-1]
    if boundaries is not None:
        lengths = boundaries.diff().long()
        return 2 * query.shape[1] * widths * int((lengths * lengths).sum())
    return 2 * math.prod(query.shape[:-1]) * key.shape[-2] * widths


def _forward(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **_: Any) -> int:
    return _products(query, key, value, None, 1, 1)


def _backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **_: Any) -> int:
    return _products(query, key, value, None, 3, 2)  # scores again, of query and of key; of scores and of value


def _flat_forward(query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor | None, *rest: Any, **_: Any) -> int:
    if boundaries is None:  # (B, T, heads, D)
        query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    return _products(query, key, value, boundaries, 1, 1)


def _flat_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, total: Tensor, boundaries: Tensor | None,
    *rest: Any, **_: Any,
) -> int:  # fmt: skip
    if boundaries is None:
        query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    return _products(query, key, value, boundaries, 3, 2)


def _attention_formulas() -> dict[Any, Callable[..., int]]:
    """Return formulas for attention kernels. PyTorch's own refuse grouped heads in some versions."""
    aten = torch.ops.aten
    kinds = ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
    formulas: dict[Any, Callable[..., int]] = {
        aten._flash_attention_forward: _flat_forward,
        aten._flash_attention_backward: _flat_backward,
    }
    for kind in kinds:
        formulas[getattr(aten, f"_scaled_dot_product_{kind}")] = _forward
        formulas[getattr(aten, f"_scaled_dot_product_{kind}_backward")] = _backward
    for formula in formulas.values():
        formula._get_raw = True  # type: ignore[attr-defined] # given tensors, not their shapes
    return formulas


ATTENTION = _attention_formulas()


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
