"""Where a step's time goes on a GPU: its kernels, by kind and by name.

    python benchmarks/speed/profiled.py --shape smollm2 --lanes 8 --compiled

Says what a pack's replayed step, data handling included, spends in matrix products, attention, compiled passes, plain
elementwise passes, optimizers and copies, and which kernels are the largest. Random weights, synthetic texts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from contenders import harness
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from workloads import GEMMA3, LLAMA_7B, LLAMA_58M, LLAMA_250M, SMOLLM2

SHAPES = {"smollm2": SMOLLM2, "gemma3": GEMMA3, "58m": LLAMA_58M, "250m": LLAMA_250M, "7b": LLAMA_7B}

# Parts of kernels' names, in the order in which they are looked for.
KINDS = {
    "attention": ("flash", "fmha", "attention", "sdpa", "cudnn"),
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "gemv", "splitk", "triton_tem", "triton_mm"),
    "optimizers": ("adam", "multi_tensor"),
    "compiled passes": ("triton",),
    "copies": ("memcpy", "memset", "copy", "cat", "index", "gather", "scatter"),
}


def kind_of(name: str) -> str:
    """Return what sort of work a kernel does, by its name."""
    lower = name.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in lower for part in parts)), "other passes")


def kernels(step: Any, steps: int) -> dict[str, tuple[float, float]]:
    """Return milliseconds and launches a step of every kernel."""
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    times: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in found.events() or []:
        if event.device_type == DeviceType.CUDA:
            times[event.name][0] += event.self_device_time_total / 1e3 / steps
            times[event.name][1] += 1 / steps
    return {name: (milliseconds, launches) for name, (milliseconds, launches) in times.items()}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2")
    parser.add_argument("--methods", default="lora", help="separated by commas; each is given --lanes lanes")
    parser.add_argument("--lanes", type=int, default=8)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--most", type=int, default=40, help="kernels to print")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names = [name for name in options.methods.split(",") for _ in range(options.lanes)]
    step = harness(SHAPES[options.shape], torch.device("cuda"), torch.bfloat16, names, options.compiled)
    for _ in range(40):  # every form of batch is captured before anything is timed
        step()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(40):
        step()
    torch.cuda.synchronize()
    wall = (time.perf_counter() - begin) / 40 * 1e3
    found = kernels(step, options.steps)
    kinds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for name, (milliseconds, launches) in found.items():
        kinds[kind_of(name)][0] += milliseconds
        kinds[kind_of(name)][1] += launches
    title = f"{options.shape}, {options.lanes} x {options.methods}{', compiled' if options.compiled else ''}"
    busy = sum(milliseconds for milliseconds, _ in found.values())
    print(f"{title}: {wall:.2f} ms a step, kernels {busy:.2f} ms, {torch.cuda.get_device_name()}")
    for kind, (milliseconds, launches) in sorted(kinds.items(), key=lambda pair: -pair[1][0]):
        print(f"  {kind:18s} {milliseconds:8.2f} ms {launches:8.0f} launches")
    for name, (milliseconds, launches) in sorted(found.items(), key=lambda pair: -pair[1][0])[: options.most]:
        print(f"    {milliseconds:8.3f} ms {launches:7.1f} x {kind_of(name):16s} {name[:160]}")
    if options.json:
        options.json.write_text(json.dumps({"title": title, "milliseconds": wall, "kernels": found}, indent=1))


if __name__ == "__main__":
    main()
