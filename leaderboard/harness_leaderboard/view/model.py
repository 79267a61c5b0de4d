"""What every writer formats: texts, numbers and tables. Plain data; nothing here computes or reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MISSING = "—"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: its head, what it means, and whether it holds numbers."""

    key: str
    title: str
    help: str = ""
    is_number: bool = False


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell: what is shown, what sorts, a note (why missing, what it omits), a second line, a link in the site."""

    text: str
    sort: float | str | None = None
    note: str = ""
    below: str = ""
    link: str = ""

    @property
    def is_missing(self) -> bool:
        """Whether there is no value to show."""
        return self.text == MISSING


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table: a caption, columns, and rows of cells of which the first is the row's head.

    Attributes:
        caption: What it shows.
        columns: In order.
        rows: As many cells each as there are columns.
        notes: Why values are missing or partial.
        foot: Rows that stay below the others, however these are sorted.
        foot_title: What those are.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    foot: tuple[tuple[Cell, ...], ...] = ()
    foot_title: str = ""

    def select(self, keys: Sequence[str]) -> Grid:
        """Return the grid with some of its columns."""
        places = [place for place, column in enumerate(self.columns) if column.key in keys]
        cut = [tuple(tuple(row[place] for place in places) for row in rows) for rows in (self.rows, self.foot)]
        columns = tuple(self.columns[place] for place in places)
        return Grid(caption=self.caption, columns=columns, rows=cut[0], foot=cut[1], foot_title=self.foot_title)


@dataclass(frozen=True, kw_only=True)
class BoardView:
    """One board.

    Attributes:
        slug: Names its files; depends on what the board is, not on which others there are.
        task: Name of the task.
        title: Task and context.
        context: Scale, model and budget, for people.
        facts: What the overview filters by: family, scale, model, budget, methods, references, seeds, metric.
        leaders: Who leads, in words.
        sentences: What is compared, and what a rank means.
        notes: What a reader must know before believing the numbers.
        badge: A reservation that belongs beside the heading; empty: none.
        scores: The main table.
        cost_notes: How time and memory came about.
        failures: One line per trial that did not finish.
        details: Further tables, by heading.
        bars: Per row of ``scores`` what its interval plot shows.
        axis: Of these plots: ``low`` and ``high`` in the metric's unit, both as text, and where between them guessing
            lies, from 0 to 1, or ``None``; all ``None``: no row has a score.
        values: Unrounded numbers, one mapping per row: what CSV and JSON hold.
        figures: What the page's figures draw; JSON-able.
        pairs: What the comparison of two methods shows; JSON-able.
        items: The rows' scores per item; JSON-able; ``None``: the records keep none.
    """

    slug: str
    task: str
    title: str
    context: str
    facts: Mapping[str, Any]
    leaders: str
    sentences: tuple[str, ...]
    notes: tuple[str, ...]
    badge: str
    scores: Grid
    cost_notes: tuple[str, ...]
    failures: tuple[str, ...]
    details: tuple[tuple[str, tuple[Grid, ...]], ...]
    bars: tuple[Mapping[str, Any] | None, ...]
    axis: Mapping[str, Any] | None
    values: tuple[Mapping[str, Any], ...]
    figures: Mapping[str, Any]
    pairs: Mapping[str, Any]
    items: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class FamilyView:
    """The average over one family of tasks."""

    title: str
    sentence: str
    grid: Grid


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture that is drawn before, and what it shows in words."""

    png: bytes
    text: str


@dataclass(frozen=True, kw_only=True)
class PageView:
    """A page about a method, a task or an analysis: facts, then tables, and figures or pictures where there are any.

    Attributes:
        slug: Names its file.
        kind: ``method``, ``task`` or ``analysis``.
        title: For people.
        name: As commands take it.
        facts: ``(term, text, link)``; the link is empty or an http(s) address.
        paragraphs: In words.
        grids: By heading.
        figures: What the figures draw; JSON-able; empty: none.
        pictures: By the heading that they stand under.
    """

    slug: str
    kind: str
    title: str
    name: str
    facts: tuple[tuple[str, str, str], ...]
    paragraphs: tuple[str, ...]
    grids: tuple[tuple[str, tuple[Grid, ...]], ...]
    figures: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, Picture] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Return the folder of its file."""
        return "analyses" if self.kind == "analysis" else f"{self.kind}s"


@dataclass(frozen=True, kw_only=True)
class SiteView:
    """Everything that there is to show.

    Attributes:
        overview: All boards, one row each.
        boards: In the overview's order.
        families: Averages over families of tasks.
        standings: For each method where it wins, ties, loses.
        methods: A page each.
        tasks: A page each.
        analyses: A page each.
        trials: Yields ``(shard, trials)``; reads curves only while it is walked through. JSON-able.
        record_count: How many records all this is of.
        passed_over: Files among the records that are none, and why.
        provenance: Data, base models, plugins, each with how many records have it.
        environment: The same of the machines.
        version: Of the harness that made this.
    """

    overview: Grid
    boards: tuple[BoardView, ...]
    families: tuple[FamilyView, ...]
    standings: Grid | None
    methods: tuple[PageView, ...]
    tasks: tuple[PageView, ...]
    analyses: tuple[PageView, ...]
    trials: Iterator[tuple[str, Mapping[str, Any]]]
    record_count: int
    passed_over: tuple[str, ...]
    provenance: Mapping[str, Mapping[str, int]]
    environment: Mapping[str, Mapping[str, int]]
    version: str
