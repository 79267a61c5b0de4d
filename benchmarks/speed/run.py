"""Time the harness against what people use today, side by side in one run. One command, a table and a JSON file.

    python benchmarks/speed/run.py --json speed.json                  # everything, on a GPU
    python benchmarks/speed/run.py --sections cpu                     # on a CPU
    python benchmarks/speed/run.py --sections best58m,best250m,best7b,texts   # against PEFT compiled, on a GPU

Times are medians over windows of steps, data handling included; ``start`` is what comes before the first timed step:
building, warming up, compiling, capturing. Ratios are within this run: the host's speed differs between machines.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import best
import torch
from contenders import (
    Timing,
    frozen,
    full,
    harness,
    harness_workers,
    measure,
    peft_loop,
    peft_model,
    peft_trainer_seconds,
)
from workloads import LLAMA_58M, LLAMA_250M, NANO, ROBERTA, Workload, build_model

from harness.engine import losses
from harness.engine.decomposition import announce, svd

SWEEP = ["lora", "dora", "mora", "pissa", "milora", "melora"]
SWEEP_STEPS = 1_000


class Report:
    """Collects figures and prints them as they come.

    Args:
        device: Where to run.
        limit_seconds: For one form of a peer, compiling included.
    """

    def __init__(self, device: torch.device, limit_seconds: int) -> None:
        self.device, self.limit_seconds = device, limit_seconds
        self.timings: dict[str, dict[str, Timing]] = {}
        self.claims: list[dict[str, Any]] = []

    def time(
        self, section: str, name: str, build: Callable[[], Any], steps: int, warm: int = 4, lanes: int = 1
    ) -> Timing:
        """Time one contender."""
        torch._dynamo.reset()
        return self.add(section, measure(name, build, self.device, warm, steps, lanes))

    def add(self, section: str, timing: Timing) -> Timing:
        """Print and keep what a contender took."""
        self.timings.setdefault(section, {})[timing.name] = timing
        memory = "" if timing.peak_bytes is None else f"{timing.peak_bytes / 2**20:8.0f} MiB"
        low, high = timing.spread
        print(
            f"{section:14s} {timing.name:34s} {timing.milliseconds:9.2f} ms/step [{low:.2f}, {high:.2f}]"
            f" {timing.per_trial():9.2f} ms/trial-step {memory}  start {timing.start_seconds:.1f} s",
            flush=True,
        )
        return timing

    def claim(self, text: str, value: float, target: float, at_least: bool = True) -> None:
        """Compare a ratio with its target."""
        met = value >= target if at_least else value <= target
        self.claims.append({"claim": text, "value": value, "target": target, "at_least": at_least, "met": met})
        sign = ">=" if at_least else "<="
        print(f"   {'met   ' if met else 'SHORT '} {text}: {value:.2f} (target {sign} {target})", flush=True)


def sweep(report: Report, dtype: torch.dtype) -> None:
    """36 trials of RoBERTa-base shapes, methods x learning rates x seeds."""
    device = report.device
    bare = report.time("sweep", "PEFT LoRA, bare loop", lambda: peft_loop(ROBERTA, device, dtype), 30)
    with tempfile.TemporaryDirectory() as folder:
        peft_trainer_seconds(ROBERTA, device, dtype, 10, folder)
        trainer_steps = 60
        trainer = peft_trainer_seconds(ROBERTA, device, dtype, trainer_steps, folder) / trainer_steps * 1e3
    print(f"{'sweep':14s} {'PEFT LoRA, HF Trainer':34s} {trainer:9.2f} ms/step", flush=True)
    report.time("sweep", "frozen pass", lambda: frozen(ROBERTA, device, dtype), 30)
    names = [name for name in SWEEP for _ in range(36 // len(SWEEP))]
    ours = report.time("sweep", "harness, 36 mixed lanes", lambda: harness(ROBERTA, device, dtype, names), 10, lanes=36)
    seconds = ours.start_seconds + SWEEP_STEPS * ours.milliseconds / 1e3
    report.claim(
        f"36 trials x {SWEEP_STEPS} steps, start included: speed-up over PEFT + Trainer",
        36 * SWEEP_STEPS * trainer / 1e3 / seconds,
        10,
    )
    report.claim(
        f"36 trials x {SWEEP_STEPS} steps, start included: speed-up over a bare PEFT loop",
        36 * SWEEP_STEPS * bare.milliseconds / 1e3 / seconds,
        5,
    )


def one_at_a_time(report: Report, dtype: torch.dtype) -> None:
    """LLaMA-250M shapes, one trial at a time."""
    device, w = report.device, LLAMA_250M
    floor = report.time("250M", "frozen pass, compiled", lambda: frozen(w, device, dtype, compiled=True), 15)
    lora = report.time("250M", "PEFT LoRA", lambda: peft_loop(w, device, dtype), 15)
    dora = report.time("250M", "PEFT DoRA", lambda: peft_loop(w, device, dtype, use_dora=True), 10)
    limits = {"lora": 1.35, "dora": 1.6, "mora": 1.6}
    for name in ("lora", "dora", "pissa", "mora", "melora", "milora"):
        budget = "dora:r=8" if name == "dora" else "lora:r=8"
        ours = report.time(
            "250M", f"harness {name}", lambda n=name, b=budget: harness(w, device, dtype, [n], True, b), 15
        )  # type: ignore[misc]
        peer = dora if name == "dora" else lora
        report.claim(f"250M {name}: speed-up over its PEFT counterpart", peer.milliseconds / ours.milliseconds, 1.8)
        report.claim(
            f"250M {name}: memory over PEFT's", (ours.peak_bytes or 0) / (peer.peak_bytes or 1), 1.0, at_least=False
        )
        if name in limits:
            report.claim(
                f"250M {name}: time over the compiled frozen pass",
                ours.milliseconds / floor.milliseconds,
                limits[name],
                at_least=False,
            )


def small(report: Report, dtype: torch.dtype) -> None:
    """LLaMA-58M shapes, where launching kernels costs more than running them."""
    device, w = report.device, LLAMA_58M
    lora = report.time("58M", "PEFT LoRA", lambda: peft_loop(w, device, dtype), 30)
    dora = report.time("58M", "PEFT DoRA", lambda: peft_loop(w, device, dtype, use_dora=True), 20)
    report.time("58M", "full fine-tuning, bare loop", lambda: full(w, device, dtype), 30)
    ours = {
        name: report.time(
            "58M", f"harness {name}", lambda n=name, b=budget: harness(w, device, dtype, [n], True, b), 40
        )  # type: ignore[misc]
        for name, budget in (("lora", "lora:r=8"), ("dora", "dora:r=8"), ("mora", "lora:r=8"))
    }
    report.claim("58M lora: speed-up over PEFT", lora.milliseconds / ours["lora"].milliseconds, 5)
    report.claim("58M dora: speed-up over PEFT", dora.milliseconds / ours["dora"].milliseconds, 10)
    report.claim("58M mora: time over lora", ours["mora"].milliseconds / ours["lora"].milliseconds, 1.3, at_least=False)
    eight = report.time("58M", "harness 8 x lora", lambda: harness(w, device, dtype, ["lora"] * 8, True), 20, lanes=8)
    mixed = ["lora", "lora", "dora", "dora", "mora", "mora", "pissa", "pissa"]
    several = report.time("58M", "harness 8 mixed", lambda: harness(w, device, dtype, mixed, True), 20, lanes=8)
    report.claim("58M 8 lanes of lora: trial-steps per second over PEFT", lora.milliseconds / eight.per_trial(), 10)
    report.claim("58M 8 mixed lanes: trial-steps per second over PEFT", lora.milliseconds / several.per_trial(), 6)


def decomposition(report: Report, dtype: torch.dtype) -> None:
    """Exact SVD initialisation of every linear layer of LLaMA-250M."""
    del dtype
    device = report.device

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    model = build_model(LLAMA_250M, device, torch.float32)
    weights = [m.weight for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]
    svd(torch.randn(64, 48, device=device), cache=False)  # handles and kernels
    announce(weights)
    begin = wait()
    factors = [svd(weight) for weight in weights]
    ours = wait() - begin
    begin = wait()
    again = [svd(weight) for weight in weights]
    cached = wait() - begin
    error = max(
        float(torch.linalg.norm((f.u * f.s) @ f.vh - w) / torch.linalg.norm(w))
        for f, w in zip(factors, weights, strict=True)
    )
    del model, factors, again
    begin = wait()
    peft_model(LLAMA_250M, device, torch.float32)
    plain = wait() - begin
    begin = wait()
    peft_model(LLAMA_250M, device, torch.float32, init_lora_weights="pissa")
    peft = wait() - begin - plain
    print(
        f"{'svd':14s} harness {ours:.2f} s, again {cached:.3f} s, PEFT exact PiSSA {peft:.2f} s, relative error {error:.1e}",
        flush=True,
    )
    report.claim("SVD of LLaMA-250M: speed-up over PEFT's exact PiSSA", peft / ours, 5)
    report.claim("SVD of LLaMA-250M: largest relative error of the product", error, 1e-4, at_least=False)
    report.claim("SVD of LLaMA-250M: a second use, as a share of the first", cached / ours, 0.05, at_least=False)


def cpu(report: Report, dtype: torch.dtype) -> None:
    """The main job's shapes on this CPU, and how cost grows."""
    del dtype
    device, f32 = report.device, torch.float32
    floor = report.time("cpu", "frozen pass", lambda: frozen(NANO, device, f32), 15)
    peft = report.time("cpu", "PEFT LoRA", lambda: peft_loop(NANO, device, f32), 15)
    lora = report.time("cpu", "harness lora", lambda: harness(NANO, device, f32, ["lora"]), 15)
    sweep = report.add("cpu", harness_workers(NANO, "lora", 15))
    report.claim("cpu: one trial at a time, speed over a bare PEFT loop", peft.milliseconds / lora.milliseconds, 1.0)
    report.claim("cpu: a sweep as it runs, speed per trial-step over that", peft.milliseconds / sweep.per_trial(), 1.0)
    print(
        f"   over the frozen pass: harness {lora.milliseconds / floor.milliseconds:.2f}, PEFT {peft.milliseconds / floor.milliseconds:.2f}"
    )
    for name in ("dora", "mora", "pissa", "milora", "melora", "relora", "remora"):
        report.time("cpu", f"harness {name}", lambda n=name: harness(NANO, device, f32, [n]), 10)  # type: ignore[misc]
    growth(report, NANO, f32)


def memory(report: Report, dtype: torch.dtype) -> None:
    """What saving memory costs: activations computed again, and logits in pieces."""
    device, whole = report.device, losses.MOST_LOGITS
    report.time("memory", "lora", lambda: harness(LLAMA_250M, device, dtype, ["lora"]), 15)
    report.time("memory", "lora, recompute", lambda: harness(LLAMA_250M, device, dtype, ["lora"], recomputes=True), 15)
    losses.MOST_LOGITS = 2**25
    report.time("memory", "lora, logits in 8 pieces", lambda: harness(LLAMA_250M, device, dtype, ["lora"]), 15)
    losses.MOST_LOGITS = whole


def grow(report: Report, dtype: torch.dtype) -> None:
    """How cost grows on a GPU."""
    growth(report, LLAMA_58M, dtype)


def growth(report: Report, base: Workload, dtype: torch.dtype) -> None:
    """Time against lanes, rank, sequence length and model size."""
    from dataclasses import replace

    device = report.device
    for lanes in (1, 2, 4, 8):
        report.time("lanes", str(lanes), lambda n=lanes: harness(base, device, dtype, ["lora"] * n), 5, lanes=lanes)  # type: ignore[misc]
    for rank in (1, 8, 32):
        report.time("rank", str(rank), lambda r=rank: harness(base, device, dtype, ["lora"], budget=f"lora:r={r}"), 5)  # type: ignore[misc]
    for layers in (2, 4, 8):
        deeper = replace(base, layers=layers)
        report.time("size", str(layers), lambda w=deeper: harness(w, device, dtype, ["lora"]), 5)  # type: ignore[misc]
    for length in (base.length // 2, base.length, 2 * base.length):
        longer = replace(base, length=length)
        report.time("length", str(length), lambda w=longer: harness(w, device, dtype, ["lora"]), 5)  # type: ignore[misc]


def plot(report: Report, path: Path) -> None:
    """Draw how cost grows: one panel per quantity."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [name for name in ("lanes", "rank", "length", "size") if name in report.timings]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4 * len(panels), 3), layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], panels, strict=True):
        points = sorted((float(key), timing.per_trial()) for key, timing in report.timings[name].items())
        axis.plot(*zip(*points, strict=True), marker="o")
        axis.set(
            xlabel=name, ylabel="ms per trial and step", ylim=(0, None), xscale="log", xticks=[x for x, _ in points]
        )
        axis.set_xticklabels([f"{x:g}" for x, _ in points])
        axis.minorticks_off()
    figure.savefig(path, dpi=110)


SECTIONS = {
    "sweep": sweep,
    "250m": one_at_a_time,
    "58m": small,
    "svd": decomposition,
    "cpu": cpu,
    "grow": grow,
    "memory": memory,
    "best58m": best.small,
    "best250m": best.middle,
    "best7b": best.large,
    "texts": best.lengths,
}


def main() -> None:
    """Run the sections that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = torch.cuda.is_available()
    parser.add_argument(
        "--sections", default="58m,250m,sweep,svd,memory" if on_gpu else "cpu", help=", ".join(SECTIONS)
    )
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--limit-seconds", type=int, default=300, help="for one form of a peer, compiling included")
    parser.add_argument("--plot", type=Path, help="where to draw how cost grows (sections cpu and grow)")
    options = parser.parse_args()
    device = torch.device("cuda" if on_gpu and options.sections != "cpu" else "cpu")
    report = Report(device, options.limit_seconds)
    hardware = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    )
    print(f"{hardware}, torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    for name in options.sections.split(","):
        try:
            SECTIONS[name.strip()](report, torch.bfloat16)
        finally:
            if options.json:  # what is measured is kept, whatever comes next
                body = {
                    "hardware": hardware,
                    "torch": torch.__version__,
                    "timings": {s: {n: asdict(t) for n, t in each.items()} for s, each in report.timings.items()},
                    "claims": report.claims,
                }
                options.json.write_text(json.dumps(body, indent=1))
    if options.plot:
        plot(report, options.plot)
    met = sum(claim["met"] for claim in report.claims)
    print(f"{met} of {len(report.claims)} targets met")


if __name__ == "__main__":
    main()
