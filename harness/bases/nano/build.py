"""Builds ``nano`` again, and says how close the result is to the shipped one."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from harness.bases import shipped_bases
from harness.bases.nano import recipe
from harness.bases.nano.quality import Quality, quality
from harness.bases.nano.text import Corpus, held_out_text
from harness.bases.nano.tokenizer import write_json, write_tokenizer
from harness.bases.nano.training import train, untrained
from harness.errors import UsageError

# Full rebuilds with another seed were seen 0.05 from the shipped model; one cut to a tenth of the steps, 0.3 or more.
CLOSE_BITS_PER_BYTE = 0.1


@dataclass(frozen=True)
class BuildReport:
    """What ``build`` made, beside the shipped model.

    Attributes:
        folder: Where it was written.
        sha256: Hash of the built ``model.safetensors``.
        train_seconds: Wall time of the training loop.
        built: Quality of the built model.
        shipped: Quality of the shipped model, on the same text; None if none is shipped.
        largest_difference: Largest absolute difference of any weight; None if none is shipped.
        mean_difference: Mean absolute difference over all weights; None if none is shipped. Two trainings may
            reach equal quality with unlike weights, so this tells identical from not, and no more.
    """

    folder: Path
    sha256: str
    train_seconds: float
    built: Quality
    shipped: Quality | None
    largest_difference: float | None
    mean_difference: float | None

    @property
    def closeness(self) -> str:
        """``bit-identical``, ``close`` (every quality within 0.1 bits), ``far`` or ``nothing shipped``."""
        if self.shipped is None:
            return "nothing shipped"
        if self.largest_difference == 0:
            return "bit-identical"
        shipped = asdict(self.shipped)
        gap = max(abs(value - shipped[name]) for name, value in asdict(self.built).items())
        return "close" if gap <= CLOSE_BITS_PER_BYTE else "far"

    def __str__(self) -> str:
        """The lines that the command line prints."""
        lines = [f"nano built in {self.folder} ({self.train_seconds:.0f} s of training): {self.closeness}"]
        for name, built in asdict(self.built).items():
            beside = "" if self.shipped is None else f", shipped {getattr(self.shipped, name):.3f}"
            lines.append(f"  {name}: {built:.3f} bits per byte{beside}")
        if self.shipped is not None:
            largest, mean = self.largest_difference, self.mean_difference
            lines.append(f"  weights differ by {largest:.3g} at most, by {mean:.3g} on average")
        return "\n".join(lines)


def build(
    output: Path,
    device: str = "cpu",
    seed: int = 0,
    steps: int = recipe.STEPS,
    report: Callable[[str], None] = lambda line: None,
) -> BuildReport:
    """Train ``nano`` from this machine's standard library and compare it with the shipped one.

    Args:
        output: A folder that is new or empty.
        device: A torch device such as ``cpu`` or ``cuda:0``.
        seed: Of the initial weights, of the UUIDs and of the order of the rows.
        steps: Optimiser steps, 1 or more. The default takes minutes on a data-centre GPU, hours on a CPU.
        report: Called with a line of progress now and then.

    Raises:
        UsageError: ``output`` holds files, or ``steps`` is below 1.
        DataError: This Python came without the source of its standard library.
    """
    if steps < 1:
        raise UsageError(f"steps={steps} is not allowed; give 1 or more")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} is not an empty folder; name a new one, so that no model is overwritten")
    place = torch.device(device)
    corpus = Corpus.read(seed, steps)
    report(f"{corpus.size_bytes} bytes of standard library, Python {platform.python_version()}, on {place}")
    model = untrained(seed)
    began = time.perf_counter()
    history = train(model, corpus, place, seed, steps, report)
    train_seconds = time.perf_counter() - began
    model.cpu()

    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "config.json", {**recipe.ARCHITECTURE, "torch_dtype": "float32"})
    write_tokenizer(output)
    weights = {name: weight.detach().contiguous() for name, weight in model.state_dict().items()}
    from safetensors.torch import save_file

    save_file(weights, str(output / "model.safetensors"), metadata={"format": "pt"})
    sha256 = hashlib.sha256((output / "model.safetensors").read_bytes()).hexdigest()
    measured = quality(model)
    write_json(
        output / "provenance.json",
        {
            "name": "nano",
            "command": f"harness base build nano --seed {seed} --steps {steps}",
            "sha256": sha256,
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "licence": recipe.LICENCE,
            "recipe": recipe.described(seed, steps),
            "data": {
                "source": "source of the standard library and pydoc topics, of the Python below",
                "size_bytes": corpus.size_bytes,
                "sha256": corpus.sha256,
                "uuid": "random version-4 UUIDs drawn from the seed: pairs, repetitions, tables with look-ups",
                "held_out_sha256": hashlib.sha256(held_out_text()).hexdigest(),
            },
            "environment": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": _transformers_version(),
                "device": torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu",
            },
            "train_seconds": round(train_seconds, 1),
            "train_bits_per_token": history,
            "bits_per_byte": {name: round(value, 4) for name, value in asdict(measured).items()},
        },
    )
    return compare(output, model, sha256, train_seconds, measured)


def compare(folder: Path, model: Any, sha256: str, train_seconds: float, measured: Quality) -> BuildReport:
    """Set a built model beside the shipped one."""
    shipped_folder = shipped_bases().get("nano")
    if shipped_folder is None:
        return BuildReport(folder, sha256, train_seconds, measured, None, None, None)
    from transformers import AutoModelForCausalLM

    shipped: Any = AutoModelForCausalLM.from_pretrained(shipped_folder, trust_remote_code=False)
    shipped = shipped.float().eval()
    theirs = shipped.state_dict()
    gaps = torch.cat([(weight - theirs[name]).abs().flatten() for name, weight in model.state_dict().items()])
    return BuildReport(folder, sha256, train_seconds, measured, quality(shipped), gaps.max().item(), gaps.mean().item())


def _transformers_version() -> str:
    import transformers

    return str(transformers.__version__)
