"""A board's further tables: metrics, comparisons, settings, recipes, the search, what did not finish."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from harness.results.wording import layers_text, parameters_text
from harness_leaderboard.boards.cost import first_pair
from harness_leaderboard.boards.model import PAPER_SCALE, Board, Published, RecipeField, Row, TuningTrial
from harness_leaderboard.boards.notes import setting_text
from harness_leaderboard.boards.published import recipe_fields
from harness_leaderboard.boards.scores import chance_of
from harness_leaderboard.statistics.search import Selection
from harness_leaderboard.view.curves import EARLY, GRADIENT_NORM, TRAIN_LOSS, Curve
from harness_leaderboard.view.model import MISSING, Cell, Column, Grid
from harness_leaderboard.view.scores import grouped_notes, interval_text, metric_title, paper_text, score_decimals
from harness_leaderboard.view.text import (
    many,
    p_value_text,
    percent_text,
    seconds_text,
    signed_text,
    slug_of,
    value_text,
)

MOST_PAIRS = 1_000  # that a page shows: those of 45 methods


def table(
    caption: str, heads: Sequence[str], rows: Sequence[Sequence[Cell]],
    name: Callable[[Sequence[Cell]], str] = lambda row: row[0].text,
) -> Grid:  # fmt: skip
    """Return a grid whose columns hold numbers where every value in them is one, with its notes below it.

    Args:
        caption: Above it.
        heads: Of the columns.
        rows: Their cells.
        name: What notes call a row.
    """
    columns = tuple(
        Column(key=f"{place}", title=head, is_number=_is_numbers([row[place] for row in rows]))
        for place, head in enumerate(heads)
    )
    who: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for head, cell in zip(heads, row, strict=True):
            if cell.note:
                who.setdefault((head, cell.note), []).append(name(row))
    notes = tuple(grouped_notes(who, len(rows)))
    return Grid(caption=caption, columns=columns, rows=tuple(tuple(row) for row in rows), notes=notes)


def _is_numbers(cells: Sequence[Cell]) -> bool:
    found = [cell.sort for cell in cells if cell.sort is not None]
    return bool(found) and all(isinstance(each, int | float) for each in found)


def text_cell(text: str, reason: str = "") -> Cell:
    """Return a cell that sorts by its text, or the missing sign with its reason."""
    return Cell(text=text, sort=text) if text else Cell(text=MISSING, note=reason)


def trial_cell(trial_id: str) -> Cell:
    """Return a cell that names a trial and leads to its page."""
    return Cell(text=trial_id, sort=trial_id, link=f"trial.html#{trial_id}")


def details(board: Board, curves: Sequence[Curve]) -> tuple[tuple[str, tuple[Grid, ...]], ...]:
    """Return the tables by heading; headings without any are left out."""
    found = [
        (f"{len(board.failures)} trials did not finish" if len(board.failures) != 1 else "1 trial did not finish",
         [_failures(board)] if board.failures else []),
        ("Published numbers", _published(board)),
        ("Pairs", _pairs(board)),
        ("Final metrics", [_final_metrics(board)]),
        ("Metrics by step", _by_step(board, curves)),
        ("Convergence", [_convergence(board, curves)]),
        ("Settings", [_settings(board)]),
        ("Recipe, beside the paper scale's", _recipes(board)),
        ("Learning-rate search", [_search(board)] if board.tuning else []),
        ("Trials", [_trials(board)]),
    ]  # fmt: skip
    return tuple((title, tuple(grids)) for title, grids in found if any(grid.rows for grid in grids))


def _published(board: Board) -> list[Grid]:
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
                ours.append(f"{value_text(final.value)} at the end")
            trial, differences = row.first.trial, "; ".join(found[0].differences)
            rows.append(
                (
                    text_cell(row.label),
                    Cell(text=metric_title(board, metric), sort=metric),
                    Cell(text=", ".join(_at(each.value, each.step) for each in found)),
                    Cell(text=paper_text(found[0]), sort=found[0].model),
                    text_cell(", ".join(ours), "no finished seed has this metric"),
                    text_cell(f"{trial.model}, {parameters_text(trial)} parameters, {trial.scale} scale"),
                    text_cell(f"no: {differences}" if differences else "nothing known against it"),
                    text_cell("; ".join(part for part in about if part)),
                )
            )
    heads = ("Method", "Metric", "Published", "… with", "Ours", "… with (ours)", "Comparable", "Source")
    return [table("What papers report for the same method and budget", heads, rows)] if rows else []


def _at(value: float, step: int | None) -> str:
    return value_text(value) + ("" if step is None else f" at step {step:,}")


def _recipes(board: Board) -> list[Grid]:
    """Return each recipe of the board beside the paper's, field by field, the differing ones first."""
    groups: dict[str, tuple[list[RecipeField], list[str]]] = {}
    for row in board.all_rows:
        fields = sorted(recipe_fields(row.first), key=lambda each: (not each.differs, each.name))
        groups.setdefault(repr(fields), (fields, []))[1].append(row.label)
    return [
        table(
            f"{', '.join(labels)}: {sum(each.differs for each in fields)} of {len(fields)} fields are not the paper "
            "scale's",
            ("Field", f"Ours, {board.scale} scale", f"{PAPER_SCALE.capitalize()} scale", "Differs"),
            [
                (
                    text_cell(each.name),
                    Cell(text=setting_text(each.ours)),
                    Cell(text=setting_text(each.paper)),
                    Cell(text="differs" if each.differs else "no", sort=float(each.differs)),
                )
                for each in fields
            ],
        )
        for fields, labels in groups.values()
        if fields
    ]


def _final_metrics(board: Board) -> Grid:
    names = list(dict.fromkeys([board.main_metric, *sorted({name for row in board.all_rows for name in row.metrics})]))
    rows = []
    for row in board.all_rows:
        line = [text_cell(row.label)]
        for name in names:
            summary = row.metrics.get(name)
            if summary is None or summary.value is None:
                line.append(Cell(text=MISSING, note=summary.reason if summary else "not measured for this method"))
            else:
                line.append(Cell(text=value_text(summary.value), sort=summary.value, note=summary.reason))
        rows.append(line)
    heads = ("Method", *(metric_title(board, name) for name in names))
    helps = [str(board.metric_details.get(name, {}).get("help") or "") for name in names]
    levels = [chance_of(board.all_rows, name) for name in names]
    explained = [
        f"{head}: {text}{'' if level is None else f' Guessing scores {value_text(level)}.'}"
        for head, text, level in zip(heads[1:], helps, levels, strict=True)
        if text or level is not None
    ]
    found = table("Final metrics: mean over finished seeds", heads, rows)
    return replace(found, notes=(*explained, *found.notes))


def _convergence(board: Board, curves: Sequence[Curve]) -> Grid:
    """Return how high training loss and gradient norm are on the way: the areas below their curves, per update."""
    found = {(curve.label, curve.metric): curve for curve in curves if curve.points}
    rows = []
    for row in board.all_rows:
        lines = [found.get((row.label, metric)) for metric in (TRAIN_LOSS, GRADIENT_NORM)]
        heights = [height for line in lines for height in ((line.early, line.overall) if line else (None, None))]
        if any(height is not None for height in heights):
            cells = (
                Cell(text=MISSING, note="the records do not hold it")
                if height is None
                else Cell(text=value_text(height), sort=height)
                for height in heights
            )
            rows.append((text_cell(row.label), *cells))
    spans = f"first {EARLY} updates", "all updates"
    return table(
        "Means over updates, so areas below the curves; over finished seeds",
        ("Method", *(f"{what}, {span}" for what in ("Training loss", "Gradient norm") for span in spans)),
        rows,
    )


def _by_step(board: Board, curves: Sequence[Curve]) -> list[Grid]:
    found = []
    for metric in dict.fromkeys(curve.metric for curve in curves if not curve.metric.startswith("train/")):
        lines = [curve for curve in curves if curve.metric == metric and curve.points]
        steps = sorted({point[0] for curve in lines for point in curve.points})
        shown = steps if len(steps) <= 12 else [steps[round(place * (len(steps) - 1) / 11)] for place in range(12)]
        rows = []
        for curve in lines:
            values = {point[0]: point[1] for point in curve.points}
            line = [text_cell(curve.label)]
            for step in shown:
                value, reason = values.get(step), "not evaluated at this step by a finished seed"
                line.append(
                    Cell(text=MISSING, note=reason) if value is None else Cell(text=value_text(value), sort=value)
                )
            rows.append(line)
        caption = f"{metric_title(board, metric)} by step, on the validation split: mean over finished seeds"
        found.append(table(caption, ("Method", *(f"step {step:,}" for step in shown)), rows))
    return found


def _pairs(board: Board) -> list[Grid]:
    """Return every pair, or of too many those with the best score: what separates two rows and what does not."""
    if board.analysis is None:
        return []
    decimals = score_decimals(board) + 1
    rows = []
    found = list(board.analysis.differences.values())
    opens = first_pair(board)
    best = opens[0].label if opens is not None and len(found) > MOST_PAIRS else ""
    for each in (pair for pair in found if not best or best in (pair.first, pair.second)):
        needed = each.seeds_to_separate
        rows.append(
            (
                text_cell(each.first),
                text_cell(each.second),
                Cell(text=signed_text(each.difference, f"{abs(each.difference):.{decimals}f}"), sort=each.difference),
                Cell(text=interval_text(each.new_items, decimals), sort=each.new_items.low)
                if each.new_items
                else Cell(text=MISSING, note="the records keep no items"),
                Cell(text=interval_text(each.these_items, decimals), sort=each.these_items.low),
                Cell(text=p_value_text(each.adjusted_p_value), sort=each.adjusted_p_value),
                text_cell("differ" if each.is_separated else "not told apart"),
                Cell(text=f"{each.seeds}" if each.is_paired else f"{each.seeds}, not shared", sort=each.seeds),
                Cell(text="")
                if each.is_separated
                else Cell(text=f"{needed:,}", sort=needed)
                if needed is not None
                else Cell(text=MISSING, note="no number of seeds alone would"),
            )
        )
    heads = ("Method", "Against", "Difference", "95 %, new items", "95 %, these items", "p, corrected", "Verdict",
             "Seeds", "Seeds to tell them apart")  # fmt: skip
    which = f"The pairs with {best}, of {len(found):,} in the JSON beside this page" if best else "All pairs"
    caption = (
        f"{which}, first minus second. The corrected p decides. The intervals are each pair's own, not corrected: one "
        "may exclude 0 where the board, which looks at all pairs, claims nothing. Seeds to tell them apart: how many "
        "it would take, on 4 of 5 boards, if the true difference were the one seen here."
    )
    return [table(caption, heads, rows, name=lambda row: f"{row[0].text} against {row[1].text}")]


def _fate(trial: TuningTrial) -> str:
    """Return what became of a rate of the search."""
    if trial.is_chosen:
        return "reported"
    return "no" if trial.stopped_after is None else f"stopped after {many(trial.stopped_after, 'seed')}"


def _again(selection: Selection | None) -> Cell:
    """Return how often another search would choose the rate that this one chose."""
    if selection is None:
        return Cell(text=MISSING, note="the search of a method that is not compared is not drawn again")
    return Cell(
        text="> 99 %" if selection.again > 0.99 else percent_text(selection.again, decimals=0), sort=selection.again
    )


def _search(board: Board) -> Grid:
    flat = {row.method: row.estimate.selection for row in board.rows if row.estimate}
    decimals = score_decimals(board)
    rows = []
    for trial in board.tuning:
        rows.append(
            (
                text_cell(trial.method),
                Cell(text=f"{trial.learning_rate:g}", sort=trial.learning_rate),
                Cell(text=f"{trial.seed}", sort=trial.seed),
                Cell(text=f"{trial.score:.{decimals}f}", sort=trial.score)
                if trial.score is not None
                else Cell(text=MISSING, note=trial.reason),
                Cell(text=seconds_text(trial.train_seconds), sort=trial.train_seconds)
                if trial.train_seconds is not None
                else Cell(text=MISSING, note="no training time in the record"),
                text_cell(trial.state.value.replace("_", " ")),
                Cell(text=_fate(trial), sort=float(trial.is_chosen)),
                _again(flat.get(trial.method)) if trial.is_chosen else Cell(text=""),
                trial_cell(trial.trial_id),
            )
        )
    heads = ("Method", "Learning rate", "Seed", metric_title(board, board.main_metric), "Training", "Ended", "Rate",
             "Chosen again", "Trial")  # fmt: skip
    caption = (
        "Learning-rate search: these scores choose a rate and are not results. Chosen again: how often another search "
        "of the same kind would choose this rate"
    )
    return table(caption, heads, rows)


def _failures(board: Board) -> Grid:
    rows = [
        (
            text_cell(each.method),
            text_cell(each.purpose),
            Cell(text=f"{each.seed}", sort=each.seed),
            Cell(text=f"{each.learning_rate:g}", sort=each.learning_rate),
            text_cell(each.state.value.replace("_", " ")),
            Cell(text=f"{each.step:,}", sort=each.step)
            if each.step is not None
            else Cell(text=MISSING, note="no step recorded"),
            text_cell(": ".join(part for part in (each.error_type, each.message) if part), "no error recorded"),
            trial_cell(each.trial_id),
        )
        for each in board.failures
    ]
    heads = ("Method", "Purpose", "Seed", "Learning rate", "Ended", "Step", "Error", "Trial")
    return table("Trials that did not finish", heads, rows)


def _recipe_text(row: Row) -> str:
    """Return a row's recipe, less what is off."""
    found = sorted(row.first.recipe.items())
    return ", ".join(f"{key}={setting_text(value)}" for key, value in found if value not in (0, "", None, [], ()))


def _settings(board: Board) -> Grid:
    rows, recipes = [], {_recipe_text(row) for row in board.all_rows}
    for row in board.all_rows:
        trial, besides = row.first.trial, row.first.counts.get("task_parameters")
        config = ", ".join(f"{key}={setting_text(value)}" for key, value in sorted(row.first.settings.items()))
        rows.append(
            (
                Cell(text=row.label, sort=row.label, link=f"methods/{slug_of(row.method)}.html"),
                text_cell(config, "the method has no settings"),
                text_cell(layer_settings_text(row) or "none"),
                text_cell(", ".join(trial.targets) or "all linear layers but the head"),
                Cell(text=f"{besides:,}", sort=besides)
                if besides is not None
                else Cell(text=MISSING, note="not in the record"),
                text_cell(trial.plugins.get("method", ""), "not in the record"),
                *((Cell(text=_recipe_text(row)),) if len(recipes) > 1 else ()),
            )
        )
    heads = ("Method", "Settings", "On single layers", "Adapted layers", "Parameters besides the adapter", "Plugin",
             *(("Recipe",) if len(recipes) > 1 else ()))  # fmt: skip
    found = table("Settings of each method after solving the budget", heads, rows)
    same = (f"The recipe of all rows: {recipes.pop()}",) if len(recipes) == 1 else ()
    return replace(found, notes=(*same, *found.notes))


def layer_settings_text(row: Row) -> str:
    """Return the settings that differ on single layers, or nothing."""
    return layers_text(row.first.trial.layer_settings)


def _trials(board: Board) -> Grid:
    decimals = score_decimals(board)
    rows = [
        (
            text_cell(row.label),
            Cell(text=f"{record.trial.seed}", sort=record.trial.seed),
            text_cell(record.state.value.replace("_", " ")),
            Cell(text=MISSING, note=record.reasons.get(board.main_metric, "did not finish"))
            if record.score is None
            else Cell(text=f"{record.score:.{decimals}f}", sort=record.score),
            trial_cell(record.trial_id),
        )
        for row in board.all_rows
        for record in row.records
    ]
    return table(
        "Trials whose scores are reported",
        ("Method", "Seed", "Ended", metric_title(board, board.main_metric), "Trial"),
        rows,
    )
