"""Against the best that a user can get from PEFT: compiled, with CUDA graphs, with Liger's kernels. Sections of ``run``.

Beside them stands the limit: the matrix products of the frozen model alone, forward and backward, at the rate that this
card reaches on these very shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from contenders import Timing, frozen, harness, peft_loop, within
from torch import nn
from workloads import LLAMA_7B, LLAMA_58M, LLAMA_250M, SMOLLM2, Workload, build_model


def products(workload: Workload, device: torch.device, dtype: torch.dtype) -> Callable[[], Any]:
    """Return the frozen linear layers' products, forward and for the gradient of their inputs, and nothing else."""
    model = build_model(workload, device, dtype)
    weights = [module.weight.detach() for module in model.modules() if isinstance(module, nn.Linear)]
    tokens = workload.batch_size * workload.length
    inputs = {weight.shape[1]: torch.randn(tokens, weight.shape[1], device=device, dtype=dtype) for weight in weights}
    gradients = {
        weight.shape[0]: torch.randn(tokens, weight.shape[0], device=device, dtype=dtype) for weight in weights
    }

    def step() -> None:
        for weight in weights:
            inputs[weight.shape[1]] @ weight.T
            gradients[weight.shape[0]] @ weight

    return step


def tried(report: Any, section: str, name: str, build: Callable[[], Any], steps: int, **options: Any) -> Timing | None:
    """Time a form of a peer that may not work on this machine, or not in time; say why it does not, and go on."""
    try:
        with within(report.limit_seconds):
            timing: Timing = report.time(section, name, build, steps, **options)
        return timing
    except Exception as error:  # noqa: BLE001 - whatever stops a peer here, the others are timed
        print(
            f"{section:14s} {name:34s} does not run: {type(error).__name__}: {str(error).splitlines()[0][:120]}",
            flush=True,
        )
        return None
    finally:
        torch.cuda.empty_cache()


def fastest(peers: Iterable[Timing | None]) -> Timing:
    """Return the fastest form of a peer that ran. Peers come last: one that breaks the device breaks no other figure."""
    return min((peer for peer in peers if peer is not None), key=lambda peer: peer.milliseconds)


def against(
    report: Any, section: str, workload: Workload, dtype: torch.dtype, mode: str, ours: dict[str, float]
) -> None:
    """Time PEFT's forms, ours, the compiled frozen pass and the limit; claim the ratio with the fastest form."""
    device = report.device
    limit = report.time(section, "frozen products alone", lambda: products(workload, device, dtype), 20)
    floor = tried(report, section, "frozen pass, compiled", lambda: frozen(workload, device, dtype, compiled=True), 15)
    timings = {
        name: report.time(section, f"harness {name}", lambda n=name: harness(workload, device, dtype, [n], True), 15)  # type: ignore[misc]
        for name in ours
    }
    label = {"default": "compiled", "reduce-overhead": "compiled, graphs"}[mode]
    forms = {"not compiled": ("", False), label: (mode, False), f"{label}, autocast": (mode, True)}
    best = fastest(
        tried(report, section, f"PEFT LoRA, {name}", lambda m=each, a=cast: peft_loop(workload, device, dtype, m, autocast=a), 15, warm=8)  # type: ignore[misc]
        for name, (each, cast) in forms.items()
    )  # fmt: skip
    for name, target in ours.items():
        timing = timings[name]
        report.claim(f"{section} {name}: speed-up over {best.name}", best.milliseconds / timing.milliseconds, target)
        if name == "lora":
            report.claim(
                f"{section} lora: time over the limit", timing.milliseconds / limit.milliseconds, 2.5, at_least=False
            )
            report.claim(
                f"{section} lora: memory over {best.name}", (timing.peak_bytes or 0) / (best.peak_bytes or 1), 1.0, at_least=False
            )  # fmt: skip
    if floor is not None:
        report.claim(
            f"{section}: compiled frozen pass over the limit",
            floor.milliseconds / limit.milliseconds,
            2.5,
            at_least=False,
        )


def small(report: Any, dtype: torch.dtype) -> None:
    """LLaMA-58M shapes."""
    against(report, "best 58M", LLAMA_58M, dtype, "reduce-overhead", {"lora": 3.0, "mora": 3.0})


def middle(report: Any, dtype: torch.dtype) -> None:
    """LLaMA-250M shapes."""
    against(report, "best 250M", LLAMA_250M, dtype, "reduce-overhead", {"lora": 2.2, "mora": 2.2, "dora": 1.0})


def large(report: Any, dtype: torch.dtype) -> None:
    """LLaMA-7B shapes; and with activations computed again, four times the texts on one card."""
    against(report, "best 7B", LLAMA_7B, dtype, "default", {"lora": 1.6, "mora": 1.6})
    longer = replace(LLAMA_7B, batch_size=16)
    report.time("best 7B", "harness lora, 16 x 512, recompute", lambda: harness(longer, report.device, dtype, ["lora"], recomputes=True), 5)  # fmt: skip


def lengths(report: Any, dtype: torch.dtype) -> None:
    """SmolLM2-135M shapes and texts of many lengths, alone and eight trials together."""
    device, w = report.device, SMOLLM2
    ours = {
        (lanes, compiled): report.time("texts", f"harness {lanes} x lora" + (", compiled" if compiled else ""), lambda n=lanes, c=compiled: harness(w, device, dtype, ["lora"] * n, c), 20, lanes=lanes)  # type: ignore[misc]
        for lanes in (1, 8)
        for compiled in (False, True)
    }  # fmt: skip
    best = fastest(
        (
            tried(report, "texts", "PEFT LoRA, not compiled", lambda: peft_loop(w, device, dtype), 20),
            tried(report, "texts", "PEFT LoRA, blocks compiled", lambda: peft_loop(w, device, dtype, "blocks"), 40, warm=16),
            tried(report, "texts", "PEFT LoRA, blocks compiled, autocast", lambda: peft_loop(w, device, dtype, "blocks", autocast=True), 40, warm=16),
            tried(report, "texts", "PEFT LoRA, Liger", lambda: peft_loop(w, device, dtype, liger=True), 20),
        )
    )  # fmt: skip
    for (lanes, _), timing in ours.items():
        gain = best.milliseconds / timing.per_trial()
        report.claim(f"texts {timing.name}: trial-steps per second over {best.name}", gain, 3.0)
        if lanes == 8:
            report.claim(f"texts {timing.name}: milliseconds a step", timing.milliseconds, 45, at_least=False)
