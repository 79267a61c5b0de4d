"""Learning curves as SVG for a page: no date, no random ids, colours that the page's style sheet sets."""

from __future__ import annotations

import html
import io
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.contract.record import Record
from harness_leaderboard.board import Row, is_finished
from harness_leaderboard.table import printable

# Okabe and Ito 2008, "Color universal design", without the yellow that white paper swallows. Lines of one
# colour differ in dashes.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
REFERENCE = "#6f6f6f"
DASHES: tuple[tuple[float, ...], ...] = ((), (4, 1.5), (1.2, 1.2), (6, 1.5, 1.2, 1.5))
INK = "#010203"  # replaced by currentColor
GRID = "#040506"  # replaced by var(--line)
LABEL_CHARACTERS = 20

_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One method's curve.

    Attributes:
        label: Shown at the end of the line.
        index: Chooses colour and dashes, so that a method looks the same in every chart of a board.
        is_reference: Outside the budget: drawn in grey.
        points: ``(step, mean, lowest, highest)`` over seeds, in order of steps.
        stopped: ``(step, value)`` where seeds that did not finish ended.
    """

    label: str
    index: int
    is_reference: bool
    points: tuple[tuple[int, float, float, float], ...]
    stopped: tuple[tuple[int, float], ...]


def curves(rows: Sequence[Row], metric: str) -> list[Curve]:
    """Return the curve of each row that has any value of ``metric`` in its history."""
    found = []
    for index, row in enumerate(rows):
        values: dict[int, list[float]] = defaultdict(list)
        stopped = []
        for record in row.records:
            seen = history(record, metric)
            if is_finished(record):
                for step, value in seen:
                    values[step].append(value)
            elif seen:
                stopped.append(seen[-1])
        points = tuple((step, sum(each) / len(each), min(each), max(each)) for step, each in sorted(values.items()))
        if points or stopped:
            found.append(
                Curve(
                    label=printable(row.label),
                    index=index,
                    is_reference=row.is_reference,
                    points=points,
                    stopped=tuple(stopped),
                )
            )
    return found


def history(record: Record, metric: str) -> list[tuple[int, float]]:
    """Return ``(step, value)`` of one metric, without missing values; all of the same split.

    Older records end with the final score, which is of the test data and no point of a curve on validation data.
    """
    found = []
    for entry in record.history:
        value = (entry.get("metrics") or {}).get(metric)
        is_final = entry is record.history[-1] and record.trial.purpose == "report" and metric in record.metrics
        if value is not None and math.isfinite(value) and not (is_final and value == record.metrics[metric]):
            found.append((int(entry["step"]), float(value)))
    return found


def chart(found: Sequence[Curve], *, title: str, axis: str, slug: str) -> str:
    """Return one SVG element for inlining in HTML.

    Args:
        found: At least one curve.
        title: What the chart shows; read aloud by screen readers.
        axis: Label of the vertical axis.
        slug: Unique on the page; prefixes every id.
    """
    with mpl.rc_context({**_STYLE, "svg.hashsalt": slug}):
        figure = Figure(figsize=(6.6, max(3.4, 0.8 + 0.17 * len(found))))
        axes = figure.add_axes((0.105, 0.13, 0.66, 0.78))
        axes.grid(visible=True, axis="y")
        axes.set_title(axis, loc="left", fontsize=9)
        axes.set_xlabel("optimizer step")
        for curve in found:
            _draw(axes, curve)
        axes.margins(x=0.01, y=0.06)
        axes.set_xlim(axes.get_xlim())
        axes.set_ylim(axes.get_ylim())
        _label(axes, found)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _for_page(buffer.getvalue(), title, _description(found), slug)


def _color(curve: Curve) -> str:
    return REFERENCE if curve.is_reference else PALETTE[curve.index % len(PALETTE)]


def _draw(axes: Axes, curve: Curve) -> None:
    color = _color(curve)
    if curve.points:
        steps, means, lows, highs = (list(column) for column in zip(*curve.points, strict=True))
        axes.fill_between(steps, lows, highs, color=color, alpha=0.13, linewidth=0)
        marker = "o" if len(steps) == 1 else ""
        (line,) = axes.plot(steps, means, color=color, linewidth=1.7, marker=marker, markersize=4)
        dashes = DASHES[curve.index // len(PALETTE) % len(DASHES)]
        if dashes:
            line.set_dashes(dashes)
    for step, value in curve.stopped:
        axes.plot([step], [value], color=color, linestyle="", marker="x", markersize=6, markeredgewidth=1.8)


def _label(axes: Axes, found: Sequence[Curve]) -> None:
    """Write each name at the right, tied to the end of its line, so that nobody has to match colours."""
    low, high = axes.get_ylim()
    ends = [curve.points[-1][:2] if curve.points else curve.stopped[-1] for curve in found]
    places = _spread([(value - low) / (high - low) for _, value in ends])
    for curve, end, place in zip(found, ends, places, strict=True):
        is_long = len(curve.label) > LABEL_CHARACTERS
        axes.annotate(
            curve.label[: LABEL_CHARACTERS - 1] + "…" if is_long else curve.label,
            xy=end,
            xytext=(1.05, place),
            textcoords="axes fraction",
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": _color(curve),
                "linewidth": 0.8,
                "shrinkA": 1,
                "shrinkB": 2,
                "relpos": (0, 0.5),
            },
        )


def _spread(places: Sequence[float]) -> list[float]:
    """Move labels apart so that none covers another; places are fractions of the axis.

    Labels that would touch form a block, centred where its members want to be.
    """
    gap = min(0.062, 1.08 / len(places))
    order = sorted(range(len(places)), key=lambda each: (places[each], each))
    blocks: list[list[int]] = []
    for index in order:
        blocks.append([index])
        while len(blocks) > 1 and _bottom(blocks[-1], places, gap) < _bottom(blocks[-2], places, gap) + gap * len(
            blocks[-2]
        ):
            last = blocks.pop()
            blocks[-1] += last
    moved = [0.0] * len(places)
    for block in blocks:
        bottom = _bottom(block, places, gap)
        for rank, index in enumerate(block):
            moved[index] = bottom + gap * rank
    return moved


def _bottom(block: Sequence[int], places: Sequence[float], gap: float) -> float:
    """Return the place of a block's lowest label: centred on its members, inside the picture."""
    height = gap * (len(block) - 1)
    middle = sum(places[each] for each in block) / len(block)
    return max(-0.04, min(1.04 - height, middle - height / 2))


def _description(found: Sequence[Curve]) -> str:
    parts = []
    for curve in found:
        if curve.points:
            step, mean = curve.points[-1][:2]
            parts.append(f"{curve.label} {mean:.4g} at step {step}")
        if curve.stopped:
            parts.append(f"{curve.label}: {len(curve.stopped)} seeds stopped early")
    return "Last values, means over finished seeds: " + "; ".join(parts) + "."


def _for_page(svg: str, title: str, description: str, slug: str) -> str:
    """Make matplotlib's file an element of a page: own ids, the page's colours, a title to be read aloud."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{slug}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{slug}-", svg)
    for index, color in enumerate((*PALETTE, REFERENCE)):
        svg = svg.replace(color, f"var(--series-{index})")
    svg = svg.replace(INK, "currentColor").replace(GRID, "var(--line)")
    box = re.search(r'viewBox="[^"]+"', svg)
    assert box is not None, "matplotlib always writes a viewBox"
    head = (
        f'<svg class="chart" {box.group()} role="img" aria-labelledby="{slug}-title {slug}-text">'
        f'<title id="{slug}-title">{html.escape(printable(title))}</title>'
        f'<desc id="{slug}-text">{html.escape(description)}</desc>'
    )
    return head + svg[svg.index(">") + 1 :]
