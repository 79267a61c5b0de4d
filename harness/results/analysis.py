"""Analyses of finished trials and of base models: going through the layers, and what is kept and shown of the findings.

    analyse    the findings about one trial or model, layer by layer
    write      as JSON beside the records, in ``analyses/``
    read       ... and back
    table      a line per projection, a column per number

A *projection* is the last part of a layer's name: layers of one name in all blocks are averaged.

What is not here: pictures (``figure``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch

from harness.contract.analysis import Analysis, LayerChange, LayerFindings
from harness.errors import HarnessError
from harness.results.store import Store

FORMAT = 1  # of the JSON
SEED = 0  # of what analyses draw: the same vectors for every trial, so that trials can be compared


@dataclass(frozen=True)
class Findings:
    """What an analysis found out about one trial or model.

    Attributes:
        analysis: Its name.
        settings: Its settings.
        subject: What was looked at: ``trial_id`` and ``label`` of a trial, ``model`` and ``model_revision``.
        layers: What was found, by layer.
    """

    analysis: str
    settings: Mapping[str, Any]
    subject: Mapping[str, Any]
    layers: Mapping[str, LayerFindings]

    @property
    def name(self) -> str:
        """Return what to call the subject where there are several."""
        return str(self.subject.get("label") or self.subject["model"])

    def by_projection(self) -> dict[str, list[LayerFindings]]:
        """Return the findings of the layers whose names end alike, and of all under ``all``."""
        groups: dict[str, list[LayerFindings]] = {}
        for name, found in self.layers.items():
            groups.setdefault(name.rpartition(".")[2], []).append(found)
        return {**groups, "all": list(self.layers.values())}

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        layers = [
            {"layer": name, "values": dict(each.values), "curves": {k: list(v) for k, v in each.curves.items()}}
            for name, each in self.layers.items()
        ]
        return {
            "format": FORMAT,
            "analysis": self.analysis,
            "settings": dict(self.settings),
            "subject": dict(self.subject),
            "layers": layers,
        }


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
    return Findings(analysis.name, asdict(analysis.config), subject, found)


def write(findings: Findings, store: Store) -> str:
    """Write findings beside the records, replacing older ones of the same subject, and return where."""
    subject = findings.subject.get("trial_id") or findings.subject["model_revision"]
    content = json.dumps(findings.to_json(), indent=1, sort_keys=True).encode()
    return store.write_artifact(f"analyses/{findings.analysis}-{subject}.json", content)


def read(content: bytes) -> Findings:
    """Return findings that ``write`` kept.

    Raises:
        HarnessError: They are of another format.
    """
    kept = json.loads(content)
    if kept.get("format") != FORMAT:
        raise HarnessError(f"findings of format {kept.get('format')!r} cannot be read; this harness writes {FORMAT}")
    layers = {each["layer"]: LayerFindings(each["values"], each["curves"]) for each in kept["layers"]}
    return Findings(kept["analysis"], kept["settings"], kept["subject"], layers)


def table(analysis: Analysis, several: Sequence[Findings]) -> str:
    """Return a line per projection and subject: the mean of each number over the layers that have it."""
    from tabulate import tabulate

    rows = []
    for findings in several:
        for projection, layers in findings.by_projection().items():
            numbers = [mean_of(each.values[column] for each in layers) for column in analysis.columns]
            name = [findings.name] if len(several) > 1 else []
            rows.append([*name, projection, len(layers), *("-" if n is None else f"{n:.4g}" for n in numbers)])
    heads = [*(["subject"] if len(several) > 1 else []), "projection", "layers", *analysis.columns]
    return tabulate(rows, headers=heads, disable_numparse=True)


def mean_of(values: Iterable[float | None]) -> float | None:
    """Return the mean of the numbers that are there; ``None`` where there is none."""
    there = [each for each in values if each is not None]
    return fmean(there) if there else None
