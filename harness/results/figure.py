"""Pictures of what analyses found.

    check_figure    refuse a picture that could not be drawn, before anything is measured
    figure          draw findings as SVG, PNG or another format that matplotlib has

What goes together stands in a row of panels with one scale. Of one subject, the numbers or curves of a row are drawn
against each other; of several, the subjects are, a panel for each number, or one for each projection of a curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, BinaryIO

from harness.errors import UsageError
from harness.results.findings import About, Findings, mean_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

WIDTH, BAR_HEIGHT, CURVE_HEIGHT, MARGIN = 11.0, 1.7, 2.3, 0.7  # inches
ACROSS = 4  # panels of curves beside each other
DECADES = 1e-4  # a logarithmic scale shows so small a part of the largest value
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#000000", "#ee9933", "#999999")
"""Of Tol's schemes, which people with any colour vision tell apart; a tenth subject begins again."""


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


def figure(several: Sequence[Findings], target: Path | BinaryIO) -> None:
    """Draw the panels that the analysis names; without any, its curves, or else its numbers, each for itself.

    Args:
        several: Findings of one analysis.
        target: A file whose name ends as the format's, or an open one, which becomes a PNG.
    """
    from matplotlib.figure import Figure

    analysis = several[0].about
    groups = analysis.panels or [(name,) for name in (analysis.curves or analysis.columns)]
    rows: list[tuple[Sequence[str], Sequence[str]]] = []  # what a row shows, and with what it shares its scale
    for group in groups:
        rows.extend([((name,), group) for name in group] if len(several) > 1 else [(group, group)])
    lines = -(-(len(several[0].by_projection()) - 1) // ACROSS)
    heights = [CURVE_HEIGHT * lines if names[0] in analysis.curves else BAR_HEIGHT for names, _ in rows]
    canvas = Figure(figsize=(WIDTH, sum(heights) + MARGIN), layout="constrained")
    settings = ", ".join(f"{name}={value}" for name, value in several[0].settings.items())
    canvas.suptitle(_plain(f"{analysis.title} ({settings})" if settings else analysis.title))
    parts = canvas.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
    scales: dict[tuple[str, ...], list[Axes]] = {}
    for part, (names, group) in zip(parts, rows, strict=True):
        draw = _curves if names[0] in analysis.curves else _bars
        scales.setdefault(tuple(group), []).extend(draw(part, analysis, several, names))
    for axes in scales.values():
        _one_scale(axes)
    if len(several) > 1:
        handles, labels = parts[0].axes[0].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 9), fontsize=9)
    canvas.savefig(target, dpi=110)


def _one_scale(axes: Sequence[Axes]) -> None:
    """Give axes the same limits, with a little air."""
    low, high = min(axis.dataLim.y0 for axis in axes), max(axis.dataLim.y1 for axis in axes)
    for axis in axes:
        if axis.get_yscale() == "log":
            axis.set_ylim(high * DECADES, high * 2)
        elif high > low:
            air = 0.05 * (high - low)
            axis.set_ylim(low - air if abs(low) > 1e-9 * abs(high) else 0, high + air)


def _plain(text: str) -> str:
    """Return text in which no sign begins a formula."""
    return text.replace("$", r"\$")


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return names such as task/method/rate/seed without the parts that all of them share."""
    parts = [name.split("/") for name in names]
    if len({len(each) for each in parts}) > 1:
        return {name: name for name in names}
    telling = [len(set(column)) > 1 for column in zip(*parts, strict=True)]
    short = ["/".join(part for part, tells in zip(each, telling, strict=True) if tells) for each in parts]
    return dict(zip(names, [each or name for each, name in zip(short, names, strict=True)], strict=True))


def _series(
    several: Sequence[Findings], names: Sequence[str], what: Mapping[str, str]
) -> list[tuple[str, Findings, str]]:
    """Return what is drawn against each other: its label, whose it is, and the name of the number or curve."""
    if len(several) > 1:
        labels = short_names([each.name for each in several])
        return [(_plain(labels[findings.name]), findings, name) for name in names for findings in several]
    return [(_plain(what[name]), several[0], name) for name in names]


def _bars(part: SubFigure, analysis: About, several: Sequence[Findings], names: Sequence[str]) -> list[Axes]:
    """Draw means over the layers of each projection, and over all, a bar for each of what is compared."""
    axis = part.subplots()
    series = _series(several, names, analysis.columns)
    width = 0.8 / len(series)
    projections = list(several[0].by_projection())
    for number, (label, findings, column) in enumerate(series):
        found = findings.by_projection()
        heights = [mean_of(each.values[column] for each in found[projection]) for projection in projections]
        places = [place + width * (number - (len(series) - 1) / 2) for place in range(len(projections))]
        drawn = [0.0 if height is None else height for height in heights]
        axis.bar(places, drawn, width, label=label, color=COLOURS[number % len(COLOURS)])
    axis.axhline(0, color="black", linewidth=0.6)
    axis.set_xticks(range(len(projections)), [_plain(each) for each in projections], fontsize=9)
    axis.tick_params(axis="y", labelsize=8)
    if len(names) == 1:
        axis.set_title(_plain(f"{names[0]}: {analysis.columns[names[0]]}"), fontsize=9, loc="left")
    else:
        axis.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(series), frameon=False)
    return [axis]


def _curves(part: SubFigure, analysis: About, several: Sequence[Findings], names: Sequence[str]) -> list[Axes]:
    """Draw curves averaged over the layers of each projection, a panel for each."""
    groups = {name: layers for name, layers in several[0].by_projection().items() if name != "all"}
    lines = -(-len(groups) // ACROSS)
    panels = list(part.subplots(lines, ACROSS, squeeze=False).flat)
    for axis in panels[len(groups) :]:
        axis.remove()
    for axis, projection in zip(panels, groups, strict=False):
        for number, (label, findings, curve) in enumerate(_series(several, names, analysis.curves)):
            drawn = [each.curves[curve] for each in findings.by_projection()[projection] if curve in each.curves]
            length = min(map(len, drawn), default=0)
            heights = [fmean(each[place] for each in drawn) for place in range(length)]
            axis.plot(range(1, length + 1), heights, label=label, color=COLOURS[number % len(COLOURS)])
        if set(names) <= set(analysis.logarithmic):
            axis.set_xscale("log")
            axis.set_yscale("log")
        else:
            axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_title(_plain(projection), fontsize=9)
        axis.set_xlabel(_plain(analysis.along.get(names[0], "place")), fontsize=8)
        axis.tick_params(labelsize=8)
    for axis in panels[: len(groups) : ACROSS]:
        axis.set_ylabel(_plain(analysis.curves[names[0]]) if len(names) == 1 else "", fontsize=8)
    if len(names) > 1:
        handles, labels = panels[0].get_legend_handles_labels()
        part.legend(handles, labels, loc="outside upper left", ncols=len(labels), fontsize=8, frameon=False)
    return panels[: len(groups)]
