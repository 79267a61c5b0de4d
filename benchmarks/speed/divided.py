"""Train methods on a LLaMA that one GPU cannot hold, divided over several. Random weights: nothing is loaded.

    python benchmarks/speed/divided.py --ranks 2                                        # 32.5 billion parameters
    python benchmarks/speed/divided.py --ranks 2 --shape tiny --device cpu --json out.json

Prints, of every method, the time of a step (the median; all of an update, exchange included), tokens per second over all
GPUs, each one's peak memory, and the losses, which must fall: all updates are of the same few texts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from contenders import build_lanes
from torch.distributed import TCPStore
from workloads import SyntheticTask, Workload

from harness.engine.pack import Pack
from harness.engine.ranks import Together
from harness.engine.resident import Base
from harness.engine.sharding import Place, divide, places_of
from harness.planning.registry import build_registry

SHAPES: dict[str, dict[str, int]] = {
    "30b": {
        "hidden_size": 6656, "intermediate_size": 17920, "num_hidden_layers": 60, "num_attention_heads": 52,
    },  # LLaMA, arXiv:2302.13971, table 2
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4},
}  # fmt: skip


def random_base(shape: str, task: Any, precision: str, ranks: Together, device: torch.device) -> Base:
    """Return a base whose blocks are drawn on each device, the same everywhere, and divided one by one."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    dtype = getattr(torch, precision)
    config = LlamaConfig(**SHAPES[shape], vocab_size=32_000, max_position_embeddings=2048, use_cache=False)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(dtype).requires_grad_(False).eval()
    positions = dict(LlamaRotaryEmbedding(config).named_buffers())
    generator = torch.Generator(device).manual_seed(0)

    def give(place: Place) -> torch.Tensor:
        if not place.is_parameter:
            return positions[place.names[0].rpartition(".")[2]].to(device)
        if len(place.shape) == 1:
            return torch.ones(*place.shape, dtype=dtype, device=device)
        return torch.empty(*place.shape, dtype=dtype, device=device).normal_(0, 0.02, generator=generator)

    divide(model, places_of(model), give, (), ranks, device)
    return Base(model, task, precision, recomputes=True, ranks=ranks)


def train(asked: argparse.Namespace, ranks: Together, device: torch.device) -> dict[str, Any]:
    """Train every method for some steps, and return what was seen."""
    workload = Workload(f"LLaMA {asked.shape} {asked.batch}x{asked.length} all linears", asked.batch, asked.length)
    registry = build_registry()
    begin = time.perf_counter()
    base = random_base(asked.shape, SyntheticTask(workload), asked.precision, ranks, device)
    kept = sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in base.model.parameters())
    report: dict[str, Any] = {"parameters": base.parameters, "kept": kept, "methods": {}}
    say(ranks, f"{workload.name}: {base.parameters:,} parameters, {kept:,} on each of {ranks.count} ranks, divided "
               f"and tried in {time.perf_counter() - begin:.0f} s, {memory(device) / 2**30:.1f} GiB at most")  # fmt: skip
    for name in asked.methods.split(","):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        begin = time.perf_counter()
        lanes = build_lanes(registry, base, workload, [name], "lora:r=8")
        lanes[0].hold_rows()
        pack = Pack(base, lanes)
        seconds, losses = [], []
        for _ in range(asked.steps):
            start = time.perf_counter()
            losses.append(float(pack.step()[0, 0]))  # waits for the device
            seconds.append(time.perf_counter() - start)
        median = statistics.median(seconds[1:])
        peak = memory(device)
        report["methods"][name] = {
            "step_seconds": median, "tokens_per_second": asked.batch * asked.length / median, "losses": losses,
            "peak_bytes_of_the_first": peak, "adapter_parameters": lanes[0].adapter_parameters(),
        }  # fmt: skip
        say(ranks, f"{name:8s} {median * 1e3:9.0f} ms/step {asked.batch * asked.length / median:9.0f} tokens/s "
                   f"{peak / 2**30:6.1f} GiB a rank, loss {losses[0]:.4f} -> {losses[-1]:.4f}, "
                   f"{lanes[0].adapter_parameters():,} adapter parameters, {time.perf_counter() - begin:.0f} s")  # fmt: skip
        if not losses[-1] < losses[0]:
            raise SystemExit(f"{name}: the loss does not fall")
        del pack, lanes
        base.clear()
    return report


def memory(device: torch.device) -> int:
    """Return the most bytes that were allocated on a GPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def say(ranks: Together, text: str) -> None:
    """Print once."""
    if ranks.number == 0:
        print(text, flush=True)


def main() -> None:
    """Start the ranks, or be one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--shape", choices=SHAPES, default="30b")
    parser.add_argument("--methods", default="lora,mora")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4, help="examples of an update, over all ranks")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.rank is None:
        meeting = TCPStore("127.0.0.1", 0, asked.ranks, is_master=True, wait_for_workers=False)
        command = [sys.executable, *sys.argv, "--port", str(meeting.port), "--rank"]
        ranks = [subprocess.Popen([*command, str(number)]) for number in range(asked.ranks)]
        while all(each.poll() is None for each in ranks):
            time.sleep(0.2)
        while any(each.poll() is None for each in ranks) and not any(each.poll() for each in ranks):
            time.sleep(0.2)
        failed = any(each.poll() for each in ranks)
        for each in ranks:
            each.kill()
        sys.exit(int(failed))
    device = f"cuda:{asked.rank}" if asked.device == "cuda" else "cpu"
    store = TCPStore("127.0.0.1", asked.port, asked.ranks, is_master=False)
    together = Together(asked.rank, asked.ranks, store, device)
    report = train(asked, together, torch.device(device))
    if asked.json and asked.rank == 0:
        asked.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
