"""How numbers, sizes and names are written. Every writer shows the same text for the same value."""

from __future__ import annotations

import hashlib
import math
import re


def printable(text: str) -> str:
    """Replace control and direction characters: a record must not steer a terminal, turn numbers or forge lines."""
    return text if text.isprintable() else "".join(each if each.isprintable() else " " for each in text)


def slug_of(*parts: str) -> str:
    """Return a file name for some names: readable, and different for different names.

    It depends on the names alone, so a link to it stays right when other things are added.
    """
    words = "-".join(filter(None, (re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-")[-32:] for part in parts)))
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]
    return f"{words[:90].strip('-')}-{digest}".lstrip("-")


def model_text(model: str) -> str:
    """Return a model's name without its owner or folder; what is trained from scratch keeps its task."""
    if not model:
        return "model not recorded"
    return model if model.startswith("from-scratch/") else model.rstrip("/").rsplit("/", 1)[-1]


def value_text(value: float) -> str:
    """Return a metric's value with four significant digits."""
    return f"{value:.4g}"


def rounded_text(value: float) -> str:
    """Return a count with three significant digits and no exponent, e.g. ``81,900`` or ``0.0412``."""
    if value == 0:
        return "0"
    return f"{round(value, 2 - math.floor(math.log10(abs(value)))):,.10g}"


def seconds_text(seconds: float) -> str:
    """Return a duration, e.g. ``8.31 s``, ``4 min 10 s``, ``2 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def bytes_text(count: float) -> str:
    """Return a size, e.g. ``412 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}" if count < 999.5 else f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def signed_text(value: float, text: str = "") -> str:
    """Return a difference with its sign: four significant digits, or those of a given text of its size."""
    shown = text or f"{abs(value):.4g}"
    return f"{'−' if value < 0 else '+'}{shown}"


def percent_text(fraction: float, *, signed: bool = False, decimals: int = 2) -> str:
    """Return a fraction as per cent, e.g. ``0.12 %``."""
    return f"{fraction:{'+' if signed else ''}.{decimals}%}".replace("%", " %").replace("-", "−")


def p_value_text(p_value: float) -> str:
    """Return a p-value, e.g. ``0.031`` or ``< 0.001``."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def scope_text(is_new: bool) -> str:
    """Return what an interval is for, beside it: items that were not seen, or these alone."""
    return "new items" if is_new else "these items"


def rank_text(rank: tuple[int, int]) -> str:
    """Return a range of ranks, e.g. ``1`` or ``2–4``."""
    return f"{rank[0]}" if rank[0] == rank[1] else f"{rank[0]}–{rank[1]}"


def many(count: int, noun: str) -> str:
    """Return a count with its noun, e.g. ``1 seed``, ``1,200 trials``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
