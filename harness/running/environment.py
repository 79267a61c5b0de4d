"""What a result was made with: versions, hardware, source revision."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "datasets", "evaluate", "numpy", "safetensors", "tokenizers", "lm-eval")


@cache
def _static() -> dict[str, Any]:
    import torch

    import harness

    versions = {"python": platform.python_version(), "harness": harness.__version__}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "cuda": torch.version.cuda,
        **_git(Path(harness.__file__).parent),
    }


def describe_environment(device: Any) -> dict[str, Any]:
    """Return versions, hardware and source revision, as plain JSON types.

    Args:
        device: The ``torch.device`` that trains.
    """
    import torch

    on_gpu = device.type == "cuda"
    return {
        **_static(),
        "device": device.type,
        "hardware": torch.cuda.get_device_name(device) if on_gpu else _static()["cpu"],
        "threads": torch.get_num_threads(),
    }


def conditions(devices: Sequence[str], **settings: Any) -> dict[str, Any]:
    """Return what a try depends on besides its trial, as plain JSON types: if any of it changes, so may the outcome.

    Args:
        devices: As for the workers.
        settings: How the trials are run.
    """
    import torch

    names = {
        device: f"{properties.name}, {properties.total_memory} bytes"
        for device in devices
        if device.startswith("cuda") and torch.cuda.is_available()  # else they are another machine's
        for properties in [torch.cuda.get_device_properties(device)]
    }
    return {
        "versions": _static()["versions"],
        "source": _source_digest(),
        "devices": sorted({names.get(device, _static()["cpu"] if device == "cpu" else device) for device in devices}),
        "workers": len(devices),
        **settings,
    }


def _source_digest() -> str:
    """Return a hash of the engine's source: a correction in a checkout changes no version."""
    import harness

    root = Path(harness.__file__).parent
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(f"{path.relative_to(root)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:16]


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git(folder: Path) -> dict[str, Any]:
    """Return the commit of a source checkout and whether it has changes; nulls for an installed package."""

    def run(*arguments: str) -> str | None:
        try:
            command = ["git", "-C", str(folder), *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    tracked = run("ls-files", "--error-unmatch", "__init__.py")
    if tracked is None:  # site-packages inside somebody else's checkout is not our source
        return {"git_commit": None, "git_dirty": None}
    changes = run("status", "--porcelain", "--untracked-files=no")
    return {"git_commit": run("rev-parse", "HEAD"), "git_dirty": None if changes is None else bool(changes)}
