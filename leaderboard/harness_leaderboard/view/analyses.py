"""A page per analysis: what it found out about the weights of trials and base models, in a picture and as numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from io import BytesIO

from harness.results.figure import COLOURS, figure, short_names
from harness.results.findings import Findings, mean_of
from harness_leaderboard.view.details import table
from harness_leaderboard.view.model import MISSING, Cell, Grid, PageView, Picture
from harness_leaderboard.view.pages import web_link
from harness_leaderboard.view.text import many, slug_of

NO_MEANING = "has no meaning for any of these layers, such as a direction of a change that is zero"


def analysis_pages(findings: Sequence[Findings], trials: Collection[str]) -> list[PageView]:
    """Return a page for each analysis.

    Args:
        findings: What analyses found.
        trials: Ids of the trials that have a page.
    """
    by_analysis: dict[str, list[Findings]] = defaultdict(list)
    for each in findings:
        by_analysis[each.analysis].append(each)
    return [_page(name, by_analysis[name], trials) for name in sorted(by_analysis)]


def _page(name: str, findings: Sequence[Findings], trials: Collection[str]) -> PageView:
    about = findings[0].about
    sections: dict[str, list[Findings]] = defaultdict(list)
    for each in sorted(findings, key=lambda one: one.name):
        sections[_heading(each)].append(each)
    pictures, grids = {}, []
    for heading, several in sections.items():
        pictures[heading] = _picture(several)
        grids.append((heading, (_grid(several, trials),)))
    facts = [
        ("Name", name, ""),
        ("Paper", about.paper, web_link(about.paper)),
        ("What the paper says", about.claim, ""),
        *((column, meaning, "") for column, meaning in about.columns.items()),
    ]
    return PageView(
        slug=slug_of(name),
        kind="analysis",
        title=about.title or name,
        name=name,
        facts=tuple(fact for fact in facts if fact[1]),
        paragraphs=("Means over the layers of one name in all blocks. A trial's numbers are of one seed.",),
        grids=tuple(grids),
        pictures=pictures,
    )


def _heading(findings: Findings) -> str:
    """Return what can be compared: the task, the base model and the settings of the analysis."""
    task = findings.name.rsplit("/", 3)[0] if "trial_id" in findings.subject else ""
    settings = ", ".join(f"{name}={value}" for name, value in sorted(findings.settings.items()))
    return ", ".join(each for each in (task, findings.subject.get("model", ""), settings) if each)


def _picture(several: Sequence[Findings]) -> Picture:
    drawn = _some(several)
    file = BytesIO()
    figure(drawn, file)
    left_out = f" {len(drawn)} of {len(several)} are drawn." * (len(drawn) < len(several))
    return Picture(png=file.getvalue(), text=f"{several[0].about.title}, as in the table below.{left_out}")


def _some(several: Sequence[Findings]) -> Sequence[Findings]:
    """Return as many as there are colours: one of each method first, where there are more."""
    if len(several) <= len(COLOURS):
        return several
    one_each = {each.name.rsplit("/", 2)[0]: each for each in reversed(several)}
    first = list(reversed(one_each.values()))
    rest = [each for each in several if each not in first]
    return [*first, *rest][: len(COLOURS)]


def _grid(several: Sequence[Findings], trials: Collection[str]) -> Grid:
    names = short_names([each.name for each in several])
    columns = several[0].about.columns
    rows = []
    for findings in several:
        trial = findings.subject.get("trial_id", "")
        link = f"trial.html#{trial}" if trial in trials else ""
        subject = names[findings.name] if len(several) > 1 else findings.name
        for projection, layers in findings.by_projection().items():
            numbers = (_number(mean_of(each.values.get(column) for each in layers)) for column in columns)
            rows.append((
                Cell(text=subject, sort=subject, link=link), Cell(text=projection, sort=projection),
                Cell(text=f"{len(layers)}", sort=len(layers)), *numbers,
            ))  # fmt: skip
    caption = f"{many(len(several), 'trial')}" if "trial_id" in several[0].subject else "The base model alone"
    return table(caption, ("Of", "Projection", "Layers", *columns), rows, lambda row: f"{row[0].text} {row[1].text}")


def _number(value: float | None) -> Cell:
    return Cell(text=MISSING, note=NO_MEANING) if value is None else Cell(text=f"{value:.4g}", sort=value)
