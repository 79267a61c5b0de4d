"""The HTML page: what the template shows, prepared so that the template only places it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from harness import __version__
from harness.contract.record import Record
from harness_leaderboard import curves, table
from harness_leaderboard.board import (
    PAPER_SCALE,
    Board,
    Published,
    RecipeField,
    Row,
    build_boards,
    distinct_values,
    is_finished,
    recipe_fields,
    setting_text,
)
from harness_leaderboard.family import Family, build_families
from harness_leaderboard.table import MISSING, Cell

TRAIN_LOSS = "train/loss"
PLOT_WIDTH, PLOT_MARGIN = 200.0, 8.0  # of the interval plot, in CSS pixels


@dataclass(frozen=True, kw_only=True)
class Head:
    """A column head of the main table."""

    title: str
    help: str
    is_number: bool


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A main-table cell: a value and a smaller line under it."""

    main: Cell
    below: Cell | None = None


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One row of the interval plot: positions in CSS pixels."""

    score: float
    low: float | None
    high: float | None
    is_cut_low: bool
    is_cut_high: bool
    seeds: tuple[float, ...]
    text: str


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The interval plot's horizontal axis."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]

    def place(self, value: float) -> float:
        """Return where a value is drawn, kept inside the plot."""
        share = min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))
        return round(PLOT_MARGIN + share * (PLOT_WIDTH - 2 * PLOT_MARGIN), 1)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of the main table."""

    row: Row
    rank: Cell
    method: Cell
    layer_settings: str
    score: Pair
    published: Cell | None
    published_of: str
    plot: Plot | None
    others: tuple[Pair, ...]
    has_failures: bool


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A plain table: a caption, heads, and rows of cells of which the first is the row's head."""

    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def notes(self) -> list[str]:
        """Return why values are missing or partial: a hint that needs a mouse does not reach phones and paper."""
        who: dict[tuple[str, str], list[str]] = {}
        for line in self.rows:
            for head, cell in zip(self.heads, line, strict=True):
                if cell.note:
                    who.setdefault((head, cell.note), []).append(line[0].text)
        return table.grouped_notes(who, len(self.rows))


@dataclass(frozen=True, kw_only=True)
class Section:
    """One board on the page."""

    board: Board
    slug: str
    title: str
    context: str
    footnotes: tuple[str, ...]
    sentences: tuple[str, ...]
    leaders: str
    heads: tuple[Head, ...]
    scale: Scale | None
    score_title: str
    lines: tuple[Line, ...]
    references: tuple[Line, ...]
    badge: str
    cost_note: str
    published: Grid | None
    charts: tuple[Markup, ...]
    charts_note: str
    metrics: Grid
    steps: tuple[Grid, ...]
    comparisons: Grid | None
    tuning: Grid | None
    failures: Grid | None
    settings: Grid
    recipes: tuple[Grid, ...]


def render(records: Sequence[Record]) -> str:
    """Return the page. The same records give the same text, whatever their order, the time or the place."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: table.printable(value) if type(value) is str else value,  # Markup is our own
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = Path(__file__).with_name("sort.js").read_text(encoding="utf-8")
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    boards = build_boards(records)
    families = build_families(boards)
    sections = [_section(board, f"board-{index}") for index, board in enumerate(boards, start=1)]
    page = environment.get_template("page.html.j2").render(
        sections=sections,
        families=[(each, _family(each)) for each in families],
        family_context=table.family_context,
        style=Markup(style),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        script_digest=digest,
        record_count=len(records),
        overview=_overview(sections, families),
        provenance=_provenance(records),
        versions=distinct_values(records),
        harness_version=__version__,
        missing=MISSING,
        plot_width=PLOT_WIDTH,
    )
    return page.strip() + "\n"


def _section(board: Board, slug: str) -> Section:
    scale = _scale(board)
    charts, charts_note = _charts(board, slug)
    return Section(
        board=board,
        slug=slug,
        title=table.board_title(board),
        context=table.board_context(board),
        footnotes=tuple(table.footnotes(board)),
        sentences=tuple(table.summary_sentences(board)),
        leaders=table.leaders_text(board),
        heads=(
            Head(title="Seeds", help="Seeds that finished", is_number=True),
            Head(
                title="Learning rate",
                help="Peak rate, and how many trials were spent to find it",
                is_number=True,
            ),
            Head(
                title="Parameters",
                help="Trained adapter parameters, and how far from the budget",
                is_number=True,
            ),
            Head(title="Training", help="Optimizer steps only; mean over seeds", is_number=True),
            Head(title="Step, solo", help="Milliseconds and billions of operations per update, alone", is_number=True),
            Head(title="Tokens/s, solo", help="Training tokens per second, alone", is_number=True),
            Head(title="Memory, solo", help="Most in use during an update, alone", is_number=True),
        ),
        scale=scale,
        score_title=table.metric_title(board, board.main_metric),
        lines=tuple(_line(board, row, scale) for row in board.rows),
        references=tuple(_line(board, row, scale) for row in board.references),
        badge=table.limit_text(board),
        cost_note=table.COST_NOTE,
        published=_published(board),
        charts=charts,
        charts_note=charts_note,
        metrics=_final_metrics(board),
        steps=tuple(_steps(board, name) for name in _evaluated_metrics(board)),
        comparisons=_comparisons(board),
        tuning=_tuning(board),
        failures=_failures(board),
        settings=_settings(board),
        recipes=_recipes(board),
    )


def _line(board: Board, row: Row, scale: Scale | None) -> Line:
    cells = table.cells(board, row)
    effort = f"{row.tune_trials} tried" if row.tune_trials else "not searched"
    return Line(
        row=row,
        rank=cells["rank"],
        method=cells["method"],
        layer_settings=table.layer_settings_text(row),
        score=Pair(main=cells["score"], below=None if cells["score"].is_missing else cells["interval"]),
        published=cells["published"] if row.published_score else None,
        published_of=f"{table.model_text(row.published_score.model)}, {PAPER_SCALE} scale"
        if row.published_score
        else "",
        plot=_plot(board, row, scale),
        others=(
            Pair(main=cells["seeds"], below=cells["states"]),
            Pair(main=cells["learning_rate"], below=Cell(text=effort, sort=None, note=cells["tuning"].note)),
            Pair(main=cells["parameters"], below=cells["deviation"]),
            Pair(main=cells["train"], below=_together(row)),
            Pair(main=cells["step"], below=_operations(cells["flops"])),
            Pair(main=cells["tokens"]),
            Pair(main=cells["memory"]),
        ),
        has_failures=any(not is_finished(record) for record in row.records),
    )


def _together(row: Row) -> Cell | None:
    """Return how many trials trained at once, since that is what the training time depends on."""
    finished = [record for record in row.records if is_finished(record)]
    lanes = sorted({int(lanes) for record in finished if (lanes := record.cost.get("pack_lanes"))})
    parts = [f"{' or '.join(map(str, lanes))} at once"] if lanes and lanes != [1] else []
    parts += ["compiled"] if any(record.cost.get("compiled") for record in finished) else []
    return Cell(text=", ".join(parts), sort=None) if parts else None


def _operations(flops: Cell) -> Cell | None:
    return None if flops.is_missing else Cell(text=f"{flops.text} GFLOPs", sort=flops.sort, note=flops.note)


def _scale(board: Board) -> Scale | None:
    """Return an axis that holds every seed, and every interval that does not hide the seeds."""
    seeds = [value for row in board.all_rows for value in row.seed_scores.values()]
    if not seeds:
        return None
    low, high = min(seeds), max(seeds)
    room = (high - low) or abs(high) * 0.05 or 1.0
    intervals = [row.score.interval for row in board.all_rows if row.score.interval is not None]
    low = max(low - room, min([low, *(each.low for each in intervals)]))
    high = min(high + room, max([high, *(each.high for each in intervals)]))
    if low == high:
        low, high = low - room, high + room
    bare = Scale(low=low, high=high, ticks=())
    nice = MaxNLocator(nbins=4, steps=[1, 2, 5, 10]).tick_values(low, high)
    ticks = tuple((bare.place(value), f"{round(value, 10):g}") for value in nice if low <= value <= high)
    return Scale(low=low, high=high, ticks=ticks)


def _plot(board: Board, row: Row, scale: Scale | None) -> Plot | None:
    if scale is None or row.score.value is None:
        return None
    interval = row.score.interval
    score = table.score_text(board, row.score.value)
    span = f"95 % interval {table.interval_cell(board, row.score).text}" if interval else "1 seed, no interval"
    return Plot(
        score=scale.place(row.score.value),
        low=scale.place(interval.low) if interval else None,
        high=scale.place(interval.high) if interval else None,
        is_cut_low=interval is not None and interval.low < scale.low,
        is_cut_high=interval is not None and interval.high > scale.high,
        seeds=tuple(scale.place(value) for value in row.seed_scores.values()),
        text=f"{row.label}: {score}, {span}",
    )


def _charts(board: Board, slug: str) -> tuple[tuple[Markup, ...], str]:
    charts = []
    has_stopped = False
    for number, metric in enumerate(dict.fromkeys((board.main_metric, TRAIN_LOSS))):
        found = curves.curves(board.all_rows, metric)
        if not found:
            continue
        has_stopped |= any(curve.stopped for curve in found)
        axis = "training loss" if metric == TRAIN_LOSS else f"{table.metric_title(board, metric)}, validation"
        svg = curves.chart(
            found,
            title=f"{axis} by step: {table.board_title(board)}",
            axis=axis,
            slug=f"{slug}-chart-{number}",
        )
        charts.append(Markup(svg))  # noqa: S704 - made by matplotlib, which escapes its text
    note = (
        "Lines are means over finished seeds, bands run from the lowest to the highest seed. Scores on the way are of "
        "the validation split; the final score, of the test split, is the table's."
    )
    return tuple(charts), note + (" A cross marks where a seed that did not finish ended." if has_stopped else "")


def _published(board: Board) -> Grid | None:
    """Return every number that papers report for the rows, beside ours, and what each is of."""
    rows = []
    for row in board.all_rows:
        groups: dict[tuple[str, ...], list[Published]] = {}
        for each in row.published:
            groups.setdefault((each.metric, each.model, each.source, each.confidence, each.caveat), []).append(each)
        for (metric, _, *about), found in groups.items():
            ours = [_at(each.ours, each.step) for each in found if each.step is not None and each.ours is not None]
            final = row.metrics.get(metric)
            if final is not None and final.value is not None:
                ours.append(f"{table.value_text(final.value)} at the end")
            differences = "; ".join(found[0].differences)
            rows.append(
                (
                    Cell(text=row.label, sort=row.label),
                    Cell(text=table.metric_title(board, metric), sort=metric),
                    Cell(text=", ".join(_at(each.value, each.step) for each in found), sort=None),
                    Cell(text=table.paper_text(found[0]), sort=found[0].model),
                    Cell(text=", ".join(ours), sort=None)
                    if ours
                    else Cell(text=MISSING, sort=None, note="no finished seed has this metric"),
                    Cell(text=table.ours_text(row), sort=row.first.trial.model),
                    Cell(text=f"no: {differences}" if differences else "nothing known against it", sort=None),
                    Cell(text="; ".join(part for part in about if part), sort=about[0]),
                )
            )
    if not rows:
        return None
    heads = ("Method", "Metric", "Published", "… with", "Ours", "… with", "Comparable", "Source")
    return Grid(caption="What papers report for the same method and budget", heads=heads, rows=tuple(rows))


def _at(value: float, step: int | None) -> str:
    return table.value_text(value) + ("" if step is None else f" at step {step:,}")


def _recipes(board: Board) -> tuple[Grid, ...]:
    """Return each recipe of the board beside the paper's, field by field, the differing ones first."""
    groups: dict[str, tuple[list[RecipeField], list[str]]] = {}
    for row in board.all_rows:
        fields = sorted(recipe_fields(row.first), key=lambda each: (not each.differs, each.name))
        groups.setdefault(repr(fields), (fields, []))[1].append(row.label)
    return tuple(
        Grid(
            caption=f"{', '.join(labels)}: {sum(each.differs for each in fields)} of {len(fields)} fields are not the "
            "paper scale's",
            heads=("Field", f"Ours, {board.scale} scale", f"{PAPER_SCALE.capitalize()} scale", "Differs"),
            rows=tuple(
                (
                    Cell(text=each.name, sort=each.name),
                    Cell(text=setting_text(each.ours), sort=None),
                    Cell(text=setting_text(each.paper), sort=None),
                    Cell(text="differs" if each.differs else "", sort=float(each.differs)),
                )
                for each in fields
            ),
        )
        for fields, labels in groups.values()
        if fields
    )


def _family(family: Family) -> Grid:
    rows = tuple(tuple(line) for line in table.family_cells(family))
    return Grid(caption=table.family_sentence(family), heads=tuple(table.family_heads(family)), rows=rows)


def _final_metrics(board: Board) -> Grid:
    names = list(dict.fromkeys([board.main_metric, *sorted({name for row in board.all_rows for name in row.metrics})]))
    rows = []
    for row in board.all_rows:
        line = [Cell(text=row.label, sort=row.label)]
        for name in names:
            summary = row.metrics.get(name)
            if summary is None or summary.value is None:
                line.append(
                    Cell(
                        text=MISSING,
                        sort=None,
                        note=summary.reason if summary else "not measured for this method",
                    )
                )
            else:
                spread = ""
                if summary.interval is not None:
                    spread = f" ± {table.value_text((summary.interval.high - summary.interval.low) / 2)}"
                line.append(
                    Cell(text=table.value_text(summary.value) + spread, sort=summary.value, note=summary.reason)
                )
        rows.append(tuple(line))
    heads = ("Method", *(table.metric_title(board, name) for name in names))
    return Grid(
        caption="Final metrics: mean over finished seeds ± half of the 95 % interval",
        heads=heads,
        rows=tuple(rows),
    )


def _evaluated_metrics(board: Board) -> list[str]:
    """Return the task's metrics that were scored during training, the main one first."""
    seen = {
        name
        for row in board.all_rows
        for record in row.records
        for entry in record.history
        for name in entry.get("metrics") or {}
        if not name.startswith("train/") and curves.history(record, name)
    }
    return sorted(seen, key=lambda name: (name != board.main_metric, name))


def _steps(board: Board, metric: str) -> Grid:
    found = curves.curves(board.all_rows, metric)
    steps = sorted({point[0] for curve in found for point in curve.points})
    rows = []
    for curve in found:
        by_step = {point[0]: point[1] for point in curve.points}
        line = [Cell(text=curve.label, sort=curve.label)]
        for step in steps:
            if step in by_step:
                line.append(Cell(text=table.value_text(by_step[step]), sort=by_step[step]))
            else:
                line.append(Cell(text=MISSING, sort=None, note="not evaluated at this step by a finished seed"))
        rows.append(tuple(line))
    caption = f"{table.metric_title(board, metric)} by step, on the validation split: mean over finished seeds"
    return Grid(caption=caption, heads=("Method", *(f"step {step:,}" for step in steps)), rows=tuple(rows))


def _comparisons(board: Board) -> Grid | None:
    rows = []
    for row in board.rows:
        for versus in row.versus:
            result, other = versus.comparison, versus.other
            low, high = -result.interval.high, -result.interval.low
            rows.append(
                (
                    Cell(text=row.label, sort=row.label),
                    Cell(text=other, sort=other),
                    Cell(text=table.signed_text(-result.difference), sort=-result.difference),
                    Cell(text=f"[{table.signed_text(low)}, {table.signed_text(high)}]", sort=low),
                    Cell(text=table.p_value_text(result.p_value), sort=result.p_value),
                    Cell(text=table.p_value_text(versus.adjusted_p_value), sort=versus.adjusted_p_value),
                    Cell(text=table.p_value_text(result.sign_flip_p_value), sort=result.sign_flip_p_value),
                    Cell(text=f"{result.seeds}", sort=result.seeds),
                    Cell(text=f"{result.items:,}", sort=result.items)
                    if result.items
                    else Cell(text="seeds only", sort=0, note="no per-item scores that average to this metric"),
                )
            )
    if not rows:
        return None
    heads = ("Method", "Against", "Difference", "95 % interval", "p", "p, corrected", "p, sign flips", "Seeds", "Items")
    caption = (
        "Each method against the best, and against the best of its own rank: the corrected p decides, under 0.05 is a "
        "different rank. Sign flips use the seeds alone and are shown as a check"
    )
    return Grid(caption=caption, heads=heads, rows=tuple(rows))


def _tuning(board: Board) -> Grid | None:
    if not board.tuning:
        return None
    rows = []
    for trial in board.tuning:
        rows.append(
            (
                Cell(text=trial.method, sort=trial.method),
                Cell(text=f"{trial.learning_rate:g}", sort=trial.learning_rate),
                Cell(text=f"{trial.seed}", sort=trial.seed),
                Cell(text=table.score_text(board, trial.score), sort=trial.score)
                if trial.score is not None
                else Cell(text=MISSING, sort=None, note=trial.reason),
                Cell(text=table.seconds_text(trial.train_seconds), sort=trial.train_seconds)
                if trial.train_seconds is not None
                else Cell(text=MISSING, sort=None, note="not in the record"),
                Cell(text=trial.state.value.replace("_", " "), sort=trial.state.value),
                Cell(text="reported" if trial.is_chosen else "", sort=float(trial.is_chosen)),
            )
        )
    heads = (
        "Method",
        "Learning rate",
        "Seed",
        table.metric_title(board, board.main_metric),
        "Training",
        "Ended",
        "Rate",
    )
    return Grid(
        caption="Learning-rate search: these scores choose a rate and are not results",
        heads=heads,
        rows=tuple(rows),
    )


def _failures(board: Board) -> Grid | None:
    if not board.failures:
        return None
    rows = []
    for each in board.failures:
        no_step = "no step recorded"
        rows.append(
            (
                Cell(text=each.method, sort=each.method),
                Cell(text=each.purpose, sort=each.purpose),
                Cell(text=f"{each.seed}", sort=each.seed),
                Cell(text=f"{each.learning_rate:g}", sort=each.learning_rate),
                Cell(text=each.state.value.replace("_", " "), sort=each.state.value),
                Cell(text=f"{each.step:,}", sort=each.step)
                if each.step is not None
                else Cell(text=MISSING, sort=None, note=no_step),
                Cell(
                    text=": ".join(part for part in (each.error_type, each.message) if part),
                    sort=each.error_type,
                )
                if each.error_type or each.message
                else Cell(text=MISSING, sort=None, note="no error recorded"),
                Cell(text=each.trial_id, sort=each.trial_id),
            )
        )
    heads = ("Method", "Purpose", "Seed", "Learning rate", "Ended", "Step", "Error", "Trial")
    return Grid(caption="Trials that did not finish", heads=heads, rows=tuple(rows))


def _settings(board: Board) -> Grid:
    rows = []
    for row in board.all_rows:
        trial, counts = row.first.trial, row.first.counts
        config = ", ".join(f"{key}={value}" for key, value in sorted(trial.config.items()))
        besides = counts.get("task_parameters")
        plugin = trial.plugins.get("method", "")
        rows.append(
            (
                Cell(text=row.label, sort=row.label),
                Cell(text=config, sort=config)
                if config
                else Cell(text=MISSING, sort=None, note="the method has no settings"),
                Cell(text=table.layer_settings_text(row) or "none", sort=len(trial.layer_settings)),
                Cell(text=", ".join(trial.targets) or "all linear layers but the head", sort=", ".join(trial.targets)),
                Cell(text=f"{besides:,}", sort=besides)
                if besides is not None
                else Cell(text=MISSING, sort=None, note="not in the record"),
                Cell(text=plugin, sort=plugin) if plugin else Cell(text=MISSING, sort=None, note="not in the record"),
                Cell(text=table.recipe_text(row), sort=None),
            )
        )
    heads = (
        "Method",
        "Settings",
        "On single layers",
        "Adapted layers",
        "Parameters besides the adapter",
        "Plugin",
        "Recipe",
    )
    return Grid(caption="Settings of each method after solving the budget", heads=heads, rows=tuple(rows))


def _overview(sections: Sequence[Section], families: Sequence[Family]) -> Grid:
    rows = []
    for section in sections:
        board = section.board
        seeds = len(board.seeds)
        detectable = board.detectable_difference
        if detectable is not None and detectable >= 1 and table.is_fraction(board):
            detectable = None  # no score can differ that much
        rows.append(
            (
                Cell(text=section.title, sort=section.slug, link=section.slug),
                Cell(text=section.leaders, sort=section.leaders),
                Cell(text=f"{len({row.method for row in board.rows})}", sort=None),
                Cell(text=f"{seeds}", sort=seeds),
                Cell(text=f"{detectable:.2g}", sort=detectable)
                if detectable is not None
                else Cell(text=MISSING, sort=None, note="needs two ranked methods, and enough common seeds"),
            )
        )
    for number, family in enumerate(families, start=1):
        inside = [line for line in family.lines if not line.is_reference]
        best = inside[0].method if inside and inside[0].average is not None else ""
        rows.append(
            (
                Cell(text=table.family_title(family), sort=family.name, link=f"family-{number}"),
                Cell(text=f"{best} has the best average, untested", sort=best)
                if best
                else Cell(text=MISSING, sort=None, note="no task that every method within the budget has"),
                Cell(text=f"{len(inside)}", sort=len(inside)),
                Cell(text=MISSING, sort=None, note="see the boards of its tasks"),
                Cell(text=MISSING, sort=None, note="averages are not tested"),
            )
        )
    heads = ("Board", "Best", "Methods", "Seeds", "Difference it finds in a typical pair")
    return Grid(caption="Boards on this page", heads=heads, rows=tuple(rows))


def _provenance(records: Iterable[Record]) -> Mapping[str, Mapping[str, int]]:
    """Return the distinct data, base models and plugins, and how many records hold each."""
    counts: dict[str, dict[str, int]] = {}
    for record in sorted(records, key=lambda each: each.trial_id):
        trial = record.trial
        facts: dict[str, Any] = {
            f"data of {trial.task}": trial.data or "not recorded",
            f"revision of {trial.model}": trial.model_revision or "not recorded",
            "precision": trial.precision,
            "record schema": str(record.schema_version),
            **{f"plugin of {kind} {getattr(trial, kind, kind)}": name for kind, name in trial.plugins.items()},
        }
        for key, value in facts.items():
            values = counts.setdefault(key, {})
            values[str(value)] = values.get(str(value), 0) + 1
    return {key: dict(sorted(counts[key].items())) for key in sorted(counts)}
