"""What analyses found: kept beside the records, with all that it takes to show it, and as a table.

    write    as JSON, in ``analyses/``
    read     ... and back
    table    a line per projection, a column per number

A *projection* is the last part of a layer's name: layers of one name in all blocks are averaged.

What is not here: finding it (``analysis``), pictures (``figure``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any, Self

from harness.contract.analysis import Analysis, LayerFindings
from harness.errors import HarnessError
from harness.results.store import Store

FORMAT = 1  # of the JSON
FOLDER = "analyses"


@dataclass(frozen=True, kw_only=True)
class About:
    """What an analysis says about itself; the fields are those of ``Analysis``."""

    title: str = ""
    paper: str = ""
    claim: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    curves: Mapping[str, str] = field(default_factory=dict)
    along: Mapping[str, str] = field(default_factory=dict)
    logarithmic: Sequence[str] = ()
    panels: Sequence[Sequence[str]] = ()

    @classmethod
    def of(cls, analysis: type[Analysis]) -> Self:
        """Return what an analysis says."""
        mappings = {name: dict(getattr(analysis, name)) for name in ("columns", "curves", "along")}
        panels = tuple(tuple(each) for each in analysis.panels)
        return cls(
            title=analysis.title or analysis.name, paper=analysis.paper, claim=analysis.claim, panels=panels,
            logarithmic=tuple(analysis.logarithmic), **mappings,
        )  # fmt: skip


@dataclass(frozen=True)
class Findings:
    """What an analysis found out about one trial or model.

    Attributes:
        analysis: Its name.
        settings: Its settings.
        subject: What was looked at: ``trial_id`` and ``label`` of a trial, ``model`` and ``model_revision``.
        layers: What was found, by layer.
        about: What the numbers and curves are.
    """

    analysis: str
    settings: Mapping[str, Any]
    subject: Mapping[str, Any]
    layers: Mapping[str, LayerFindings]
    about: About = About()

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
            "about": asdict(self.about),
            "layers": layers,
        }


def write(findings: Findings, store: Store, usual: Mapping[str, Any]) -> str:
    """Write findings beside the records, replacing older ones of the same subject and settings, and return where.

    Args:
        findings: What was found.
        store: Of the records.
        usual: The analysis' settings where nobody sets any: findings with others have a name of their own.
    """
    subject = findings.subject.get("trial_id") or findings.subject["model_revision"]
    settings = json.dumps(dict(findings.settings), sort_keys=True)
    mark = "" if dict(findings.settings) == dict(usual) else f"-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"
    content = json.dumps(findings.to_json(), indent=1).encode()
    return store.write_artifact(f"{FOLDER}/{findings.analysis}-{subject}{mark}.json", content)


def read(content: bytes) -> Findings:
    """Return findings that ``write`` kept. Those of an earlier harness do not say what they are about.

    Raises:
        HarnessError: They are none, or of another format.
    """
    try:
        kept = json.loads(content)
        if kept["format"] != FORMAT:
            raise HarnessError(f"findings of format {kept['format']!r} cannot be read; this harness writes {FORMAT}")
        layers = {str(each["layer"]): _layer(each) for each in kept["layers"]}
        subject = {str(name): str(value) for name, value in kept["subject"].items()}
        return Findings(str(kept["analysis"]), dict(kept["settings"]), subject, layers, _about(kept.get("about", {})))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HarnessError(f"no findings of an analysis ({type(error).__name__}: {error})") from error


def _layer(kept: Mapping[str, Any]) -> LayerFindings:
    values = {str(name): None if value is None else float(value) for name, value in kept["values"].items()}
    return LayerFindings(values, {str(name): [float(each) for each in curve] for name, curve in kept["curves"].items()})


def _about(kept: Mapping[str, Any]) -> About:
    def texts(name: str) -> dict[str, str]:
        return {str(key): str(text) for key, text in kept.get(name, {}).items()}

    return About(
        title=str(kept.get("title", "")),
        paper=str(kept.get("paper", "")),
        claim=str(kept.get("claim", "")),
        columns=texts("columns"),
        curves=texts("curves"),
        along=texts("along"),
        logarithmic=tuple(map(str, kept.get("logarithmic", ()))),
        panels=tuple(tuple(map(str, each)) for each in kept.get("panels", ())),
    )


def table(several: Sequence[Findings]) -> str:
    """Return a line per projection and subject: the mean of each number over the layers that have it."""
    from tabulate import tabulate

    columns = several[0].about.columns
    rows = []
    for findings in several:
        for projection, layers in findings.by_projection().items():
            numbers = [mean_of(each.values[column] for each in layers) for column in columns]
            name = [findings.name] if len(several) > 1 else []
            rows.append([*name, projection, len(layers), *("-" if n is None else f"{n:.4g}" for n in numbers)])
    heads = [*(["subject"] if len(several) > 1 else []), "projection", "layers", *columns]
    return tabulate(rows, headers=heads, disable_numparse=True)


def mean_of(values: Iterable[float | None]) -> float | None:
    """Return the mean of the numbers that are there; ``None`` where there is none."""
    there = [each for each in values if each is not None]
    return fmean(there) if there else None
