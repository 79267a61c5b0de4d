"""Going through the layers of a finished trial, or of a base model, with an analysis.

What is not here: what is kept and shown of what it finds (``findings``, ``figure``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from harness.contract.analysis import Analysis, LayerChange, LayerFindings
from harness.errors import HarnessError
from harness.results.findings import About, Findings

SEED = 0  # of what analyses draw: the same vectors for every trial, so that trials can be compared


def analyse(analysis: Analysis, layers: Iterable[LayerChange], subject: Mapping[str, Any]) -> Findings:
    """Return what an analysis finds out about layers, one after the other.

    Raises:
        HarnessError: There is no layer, or the analysis returns other numbers or curves than it declares.
    """
    generator = torch.Generator().manual_seed(SEED)
    found: dict[str, LayerFindings] = {}
    for layer in layers:
        with torch.no_grad():
            one = analysis.look(layer, generator)
        if set(one.values) != set(analysis.columns) or not set(one.curves) <= set(analysis.curves):
            raise HarnessError(
                f"analysis {analysis.name!r} returned {', '.join((*one.values, *one.curves))} of layer {layer.name!r}; "
                f"it declares {', '.join((*analysis.columns, *analysis.curves))}"
            )
        found[layer.name] = one
    if not found:
        raise HarnessError(f"analysis {analysis.name!r}: there is no linear layer to look at in {dict(subject)}")
    return Findings(analysis.name, asdict(analysis.config), subject, found, About.of(type(analysis)))
