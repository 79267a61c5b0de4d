"""Settings in words, for tables: only what differs from the default, and layers that share settings as ranges."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.contract.trial import Trial


def settings_text(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """Return the settings that differ from the defaults, e.g. ``r=8, alpha=8``."""
    return ", ".join(
        f"{name}={value_text(value)}"
        for name, value in values.items()
        if name not in defaults or value != defaults[name]
    )


def value_text(value: Any) -> str:
    """Return one setting's value: numbers without needless digits, lists as they are typed on the command line."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return "+".join(map(str, value))
    return str(value)


def parameters_text(trial: Trial) -> str:
    """Return how many adapter parameters a trial trains; where fewer are left at the end, also how many."""
    left = "" if trial.final_parameters is None else f" -> {trial.final_parameters:,}"
    return f"{trial.adapter_parameters:,}{left}"


def rate_text(rate: float | None, missing: str = "-") -> str:
    """Return a learning rate, or what stands for none."""
    return missing if rate is None else f"{rate:g}"


def layers_text(layer_settings: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what differs on which layers, e.g. ``r=9 on 3 layers (h.0-1: mlp.up, attn.q; h.4: mlp.up)``."""
    alike: dict[str, list[str]] = defaultdict(list)
    for layer, values in layer_settings.items():
        alike[settings_text(values, {})].append(layer)
    return "; ".join(
        f"{settings} on {len(layers)} layer{'s' * (len(layers) > 1)} ({'; '.join(ranges(layers))})"
        for settings, layers in alike.items()
    )


def ranges(layers: Iterable[str]) -> list[str]:
    """Return names of layers, those of the same blocks together: ``h.0-3,7: attn.q, attn.v``."""
    blocks: dict[tuple[str, str], list[int]] = defaultdict(list)  # by what stands before and after the block's number
    found: dict[str, list[str]] = defaultdict(list)
    for layer in layers:
        match = re.fullmatch(r"(.*?)(?<![^.])(\d+)\.(.+)", layer)
        if match is None:
            found[layer] = []
        else:
            blocks[match[1], match[3]].append(int(match[2]))
    for (before, after), numbers in blocks.items():
        found[f"{before}{_spans(numbers)}"].append(after)
    return [f"{block}: {', '.join(names)}" if names else block for block, names in found.items()]


def _spans(numbers: Sequence[int]) -> str:
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
