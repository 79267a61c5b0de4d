"""Base models that travel with the package, so that the main job runs offline.

Here: which folders are shipped, and how a name becomes something ``from_pretrained`` loads. How one is
made is in the folder of its name. Loading a model is not here, and nothing here imports torch.
"""

from __future__ import annotations

from pathlib import Path


def shipped_bases() -> dict[str, Path]:
    """Find the shipped base models.

    Returns:
        Name to folder, sorted by name. A folder counts once it holds a config and weights.
    """
    here = Path(__file__).resolve().parent
    found = {weights.parent.name: weights.parent for weights in here.glob("*/model.safetensors")}
    return {name: found[name] for name in sorted(found) if (found[name] / "config.json").is_file()}


def resolve(name: str) -> str:
    """Turn the name of a base model into what ``from_pretrained`` takes.

    Args:
        name: A shipped name, a hub id or a local path. A shipped name wins over a folder of the same name in
            the working directory; write ``./nano`` for the folder.

    Returns:
        The local folder of a shipped base model, otherwise the name unchanged.
    """
    folder = shipped_bases().get(name)
    return name if folder is None else str(folder)
