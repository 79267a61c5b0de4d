"""The training of ``nano``: a fresh model and the loop over it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from harness.bases.nano import recipe
from harness.bases.nano.text import Corpus


def untrained(seed: int) -> Any:
    """Return a freshly initialised ``LlamaForCausalLM`` of the recipe, in float32 on the CPU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(LlamaConfig(**recipe.ARCHITECTURE))
    return model.float()


def learning_rate_at(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero. ``step`` counts from 0."""
    warmup = min(recipe.WARMUP_STEPS, steps // 10)
    if step < warmup:
        return recipe.LEARNING_RATE * (step + 1) / warmup
    return recipe.LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def train(
    model: Any, corpus: Corpus, device: torch.device, seed: int, steps: int, report: Callable[[str], None]
) -> list[tuple[int, float]]:
    """Train ``model`` in place.

    Matrix products run in bfloat16 on a GPU, in float32 on a CPU; weights and optimiser are float32 on both.

    Returns:
        (step, training loss in bits per token), about a hundred of them.
    """
    model.to(device).train()
    on_gpu = device.type == "cuda"
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    vectors = [weight for weight in model.parameters() if weight.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}],
        lr=recipe.LEARNING_RATE,
        betas=recipe.BETAS,
        fused=on_gpu,
    )

    def loss_of(rows: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            logits = model(input_ids=rows[:, :-1], use_cache=False).logits
        return functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())

    compiled = loss_of
    if on_gpu and steps >= 1000:
        # A step of so small a model is mostly kernel launches: captured in a CUDA graph, it is three times faster.
        torch.compiler.reset()  # graphs captured by an earlier build in this process would break this one
        compiled = torch.compile(loss_of, mode="reduce-overhead")
    generator = torch.Generator().manual_seed(seed)
    history: list[tuple[int, float]] = []
    every = max(1, steps // 100)
    began = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, steps)
        loss = compiled(corpus.rows(generator).to(device, non_blocking=True))
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % every == 0 or step == steps - 1:
            history.append((step, round(loss.item() / math.log(2), 4)))
            pace = (step + 1) / (time.perf_counter() - began)
            report(f"step {step + 1}/{steps}: {history[-1][1]:.3f} bits per token, {pace:.1f} steps a second")
    model.eval()
    return history
