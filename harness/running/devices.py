"""Where a sweep runs: one device per worker, its share of the cores, and in which precision."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.errors import UsageError

if TYPE_CHECKING:
    import torch

# What the CPU does for a GPU, putting batches together, is done by a few threads. More only wait for each other; and of
# several sweeps on one machine, a GPU each, all were up to five times slower with a thread a core in every worker.
MOST_GPU_THREADS = 8


def resolve_precision(name: str, device: str) -> str:
    """Return float32 or bfloat16: ``auto`` is bfloat16 on a GPU."""
    return name if name != "auto" else ("bfloat16" if device.startswith("cuda") else "float32")


def resolve_devices(device: str, workers: int) -> tuple[tuple[str, ...], int]:
    """Return one device per worker, and CPU threads per worker: its share of the cores, or what OMP_NUM_THREADS allows.

    Every GPU gets one worker, which has a few threads at most.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device.startswith("cuda"):
        count = torch.cuda.device_count()
        if count == 0:
            raise UsageError(f"--device {device}: PyTorch sees no CUDA device here; use --device cpu")
        known = [f"cuda:{number}" for number in range(count)]
        names = known if device == "cuda" else [device]
        if not set(names) <= set(known):
            raise UsageError(f"--device {device!r} is not here; give {', '.join(known)}")
        devices = tuple(names[number % len(names)] for number in range(workers or len(names)))
    elif device == "cpu":
        devices = ("cpu",) * (workers or min(cores, 2))
    else:
        raise UsageError(f"--device {device!r} is not known; give auto, cpu, cuda or cuda:N")
    most = MOST_GPU_THREADS if device.startswith("cuda") else cores
    return devices, max(1, min(cores // len(devices), most, torch.get_num_threads()))


def divide_devices(devices: Sequence[str], shard: int) -> tuple[tuple[str, ...], ...]:
    """Return groups of so many devices, one for each worker that divides its base model over them.

    Raises:
        UsageError: There are not so many different GPUs.
    """
    starts = range(0, len(devices) - shard + 1, shard)
    groups = tuple(tuple(devices[start : start + shard]) for start in starts)
    are_shared = devices[0] != "cpu" and any(len(set(group)) < shard for group in groups)
    if not groups or are_shared:
        raise UsageError(f"--shard {shard}: a model can be divided over {len(set(devices))} GPU(s) here at most")
    return groups


def parse_pack(text: str, device: str) -> int:
    """Return the most trials in a pack; 0: the worker measures. On a CPU packing saves nothing, so ``auto`` is 1."""
    if text in ("auto", "off"):
        return 0 if text == "auto" and device.startswith("cuda") else 1
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise UsageError(f"--pack {text!r}: give auto, off or a number of trials")


def fault_of(device: torch.device) -> str:
    """Return why this process can use a device no more; empty: it can.

    After an error such as an illegal access to memory, a GPU answers whatever the process asks of it with that error.
    """
    import torch

    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""
