"""Analyses of finished trials and of base models: going through the layers, and what is kept and shown of the findings.

    analyse    the findings about one trial or model, layer by layer
    write      as JSON beside the records, in ``analyses/``
    table      a line per projection, a column per number
    figure     the curves, a panel per projection, or without curves the numbers as bars, as SVG or PNG

A *projection* is the last part of a layer's name: layers of one name in all blocks are averaged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from harness.contract.analysis import Analysis, LayerChange, LayerFindings
from harness.errors import HarnessError, UsageError
from harness.results.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def check_figure(path: Path) -> None:
    """Refuse, before anything is measured, a picture that could not be drawn.

    Raises:
        UsageError: Its ending is no format, or its folder is not there.
    """
    from matplotlib.figure import Figure

    known = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix.removeprefix(".").lower() not in known:
        raise UsageError(f"--figure {str(path)!r}: the name must end in one of .{', .'.join(known)}")
    if not path.parent.is_dir():
        raise UsageError(f"--figure {str(path)!r}: there is no folder {str(path.parent)!r}; make it, or name another")


def figure(analysis: Analysis, several: Sequence[Findings], path: Path) -> None:
    """Draw every curve, averaged over the layers of a projection, a line per subject; without any, numbers as bars."""
    from matplotlib.figure import Figure

    if not analysis.curves:
        _bars(analysis, several).savefig(path)
        return
    projections = list(several[0].by_projection())
    canvas = Figure(figsize=(3.2 * len(projections), 2.8 * len(analysis.curves)), layout="constrained")
    axes = canvas.subplots(len(analysis.curves), len(projections), squeeze=False)
    for row, (curve, what) in zip(axes, analysis.curves.items(), strict=True):
        for axis, projection in zip(row, projections, strict=True):
            for findings in several:
                drawn = [each.curves[curve] for each in findings.by_projection()[projection] if curve in each.curves]
                length = min(map(len, drawn), default=0)
                heights = [fmean(each[place] for each in drawn) for place in range(length)]
                axis.plot(range(1, length + 1), heights, label=findings.name)
            axis.set_title(projection, fontsize=9)
        row[0].set_ylabel(what, fontsize=8)
    if len(several) > 1:
        axes[0][0].legend(fontsize=6)
    canvas.savefig(path)


def _bars(analysis: Analysis, several: Sequence[Findings]) -> Figure:
    """Return a panel per number: its mean over the layers of each projection, a bar per subject."""
    from matplotlib.figure import Figure

    projections = list(several[0].by_projection())
    canvas = Figure(figsize=(1.6 * len(projections), 1.9 * len(analysis.columns)), layout="constrained")
    axes = canvas.subplots(len(analysis.columns), 1, squeeze=False)[:, 0]
    width = 0.8 / len(several)
    for axis, column in zip(axes, analysis.columns, strict=True):
        for number, findings in enumerate(several):
            found = findings.by_projection()
            heights = [mean_of(each.values[column] for each in found[projection]) for projection in projections]
            places = [place + width * (number - (len(several) - 1) / 2) for place in range(len(projections))]
            axis.bar(places, [height or 0.0 for height in heights], width, label=findings.name)
        axis.set_xticks(range(len(projections)), projections, fontsize=8)
        axis.set_title(column, fontsize=9)
    if len(several) > 1:
        axes[0].legend(fontsize=6)
    return canvas
