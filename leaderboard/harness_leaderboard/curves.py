"""Learning curves as SVG text for a page: no date, no random ids, colours that the page's style sheet can change."""

from __future__ import annotations

import html
import io
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from harness_leaderboard.board import Row, is_finished

# Okabe and Ito 2008, "Color universal design", without the yellow that white paper swallows. Lines of one colour differ in dashes.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#6f6f6f")
DASHES: tuple[tuple[float, ...], ...] = ((), (4, 1.5), (1.2, 1.2), (6, 1.5, 1.2, 1.5))
INK = "#010203"  # replaced by currentColor
GRID = "#040506"  # replaced by var(--line)
LABEL_CHARACTERS = 20

_STYLE = {
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
        points: ``(step, mean, lowest, highest)`` over seeds, in order of steps.
        stopped: ``(step, value)`` where seeds that did not finish ended.
    """

    label: str
    index: int
    points: tuple[tuple[int, float, float, float], ...]
    stopped: tuple[tuple[int, float], ...]


def curves(rows: Sequence[Row], metric: str) -> list[Curve]:
    """Return the curve of each row that has any value of ``metric`` in its history."""
    found = []
    for index, row in enumerate(rows):
        values: dict[int, list[float]] = defaultdict(list)
        stopped = []
        for record in row.records:
            seen = history(record.history, metric)
            if is_finished(record):
                for step, value in seen:
                    values[step].append(value)
            elif seen:
                stopped.append(seen[-1])
        points = tuple((step, sum(each) / len(each), min(each), max(each)) for step, each in sorted(values.items()))
        if points or stopped:
            found.append(Curve(label=row.label, index=index, points=points, stopped=tuple(stopped)))
    return found


def history(entries: Iterable[Mapping[str, Any]], metric: str) -> list[tuple[int, float]]:
    """Return ``(step, value)`` of one metric, without missing values."""
    found = []
    for entry in entries:
        value = (entry.get("metrics") or {}).get(metric)
        if value is not None and math.isfinite(value):
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
        ends: list[tuple[float, float, Curve]] = []
        for curve in found:
            color, dashes = PALETTE[curve.index % len(PALETTE)], DASHES[curve.index // len(PALETTE) % len(DASHES)]
            if curve.points:
                steps, means, lows, highs = (list(column) for column in zip(*curve.points, strict=True))
                axes.fill_between(steps, lows, highs, color=color, alpha=0.13, linewidth=0)
                (line,) = axes.plot(steps, means, color=color, linewidth=1.7, marker="o" if len(steps) < 3 else "", markersize=4)
                if dashes:
                    line.set_dashes(dashes)
            for step, value in curve.stopped:
                axes.plot([step], [value], color=color, marker="x", markersize=6, markeredgewidth=1.8, linestyle="")
            last = curve.points[-1][:2] if curve.points else curve.stopped[-1]
            ends.append((last[0], last[1], curve))
        axes.margins(x=0.01, y=0.06)
        low, high = axes.get_ylim()
        axes.set_ylim(low, high)
        left, right = axes.get_xlim()
        axes.set_xlim(left, right)
        for (step, value, curve), place in zip(ends, _spread([(end[1] - low) / (high - low) for end in ends], found), strict=True):
            color = PALETTE[curve.index % len(PALETTE)]
            short = curve.label if len(curve.label) <= LABEL_CHARACTERS else curve.label[: LABEL_CHARACTERS - 1] + "…"
            axes.annotate(
                short,
                xy=(step, value),
                xytext=(1.05, place),
                textcoords="axes fraction",
                va="center",
                fontsize=9,
                color=INK,
                annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 2},
            )
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return _for_page(buffer.getvalue(), title, _description(found), slug)


def _spread(places: Sequence[float], found: Sequence[Curve]) -> list[float]:
    """Move labels apart so that none covers another: places are fractions of the axis, the result keeps their order."""
    gap = min(0.062, 1.08 / max(1, len(found)))
    order = sorted(range(len(places)), key=lambda each: (places[each], each))
    moved = [0.0] * len(places)
    floor = -0.04
    for index in order:
        moved[index] = max(places[index], floor)
        floor = moved[index] + gap
    ceiling = 1.04
    for index in reversed(order):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved


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
    """Make matplotlib's file an element of a page: unique ids, the page's colours, a title for screen readers."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{slug}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{slug}-", svg)
    for index, color in enumerate(PALETTE):
        svg = svg.replace(color, f"var(--series-{index})")
    svg = svg.replace(INK, "currentColor").replace(GRID, "var(--line)")
    box = re.search(r'viewBox="[^"]+"', svg)
    assert box is not None, "matplotlib always writes a viewBox"
    head = (
        f'<svg class="chart" {box.group()} role="img" aria-labelledby="{slug}-title {slug}-text">'
        f'<title id="{slug}-title">{html.escape(title)}</title><desc id="{slug}-text">{html.escape(description)}</desc>'
    )
    return head + svg[svg.index(">") + 1 :]
