"""A page per method and per task: what it is, how it does, and across budgets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.contract.record import Record
from harness.results.catalogue import Catalogue
from harness.results.wording import parameters_text
from harness_leaderboard.boards.across import Across
from harness_leaderboard.boards.model import Board
from harness_leaderboard.boards.notes import setting_text
from harness_leaderboard.view.across import across_grid
from harness_leaderboard.view.details import table, text_cell
from harness_leaderboard.view.figures import bounds, point, short
from harness_leaderboard.view.model import MISSING, BoardView, Cell, Grid, PageView
from harness_leaderboard.view.overview import methods_cell
from harness_leaderboard.view.scores import interval_text, layers_note, metric_title, score_decimals
from harness_leaderboard.view.sentences import chance_text
from harness_leaderboard.view.text import rank_text, scope_text, slug_of

ONE_SIZE = 1.1  # ratio of two numbers of parameters up to which a figure of sizes would show one
NOT_DESCRIBED = (
    "The results hold no description of it: `harness results describe` adds one, where its package is installed."
)


def method_pages(boards: Sequence[Board], views: Sequence[BoardView], catalogue: Catalogue) -> list[PageView]:
    """Return a page for each method that any board has a row of."""
    names = sorted({row.method for board in boards for row in board.all_rows})
    return [_method_page(name, boards, views, catalogue["methods"].get(name, {})) for name in names]


def _method_page(name: str, boards: Sequence[Board], views: Sequence[BoardView], about: Mapping[str, Any]) -> PageView:
    rows, losses = [], []
    for board, view in zip(boards, views, strict=True):
        decimals = score_decimals(board)
        for row in board.all_rows:
            if row.method != name:
                continue
            counts, score = board.outcomes(row), row.score.value
            given = _settings_text(row.first) or "none"
            rows.append(
                (
                    Cell(text=view.title, sort=view.title, link=f"boards/{view.slug}.html"),
                    Cell(text=rank_text(row.rank), sort=row.rank[0])
                    if row.rank
                    else Cell(text=MISSING, note=row.beside or row.rank_reason),
                    Cell(
                        text=metric_title(board, board.main_metric),
                        below="" if board.higher_is_better else "lower is better",
                    ),
                    Cell(text=f"{score:.{decimals}f}", sort=score, below=_guessing(board))
                    if score is not None
                    else Cell(text=MISSING, note=row.score.reason),
                    Cell(text=interval_text(row.interval, decimals), below=scope_text(row.is_for_new_items))
                    if row.interval
                    else Cell(text=MISSING, note="fewer than two finished seeds"),
                    *(Cell(text=f"{counts[key]}", sort=counts[key]) for key in ("wins", "ties", "losses")),
                    Cell(text=parameters_text(row.first.trial), sort=row.first.trial.adapter_parameters),
                    Cell(text=given, sort=given, below=layers_note(row)),
                )
            )
            losses += _decided(board, view, row.label)
    heads = (
        "Board",
        "Rank",
        "Metric",
        "Score",
        "95 %",
        "Wins",
        "Not told apart",
        "Losses",
        "Adapter parameters",
        "Settings",
    )
    grids = [("Results", (table(f"Every board that {name} is on", heads, rows),))]
    if losses:
        decided = table(
            "Pairs that a board tells apart", ("Board", "Other", "Verdict", "Difference", "p, corrected"), losses
        )
        grids.append(("Against others", (decided,)))
    if settings := about.get("settings"):
        grids.insert(0, ("Settings", (_settings_grid(settings),)))
    knob, factor = about.get("budget_knob"), about.get("learning_rate_factor")
    facts = [
        ("Name", name, ""),
        ("Trainable parameters of a layer", str(about.get("formula") or ""), ""),
        ("Paper", str(about.get("paper") or ""), web_link(about.get("paper"))),
        ("Citation", str(about.get("citation") or ""), ""),
        ("Budget", f"solved by {knob}" if knob else "outside every budget" if about.get("reference") else "", ""),
        (
            "Learning rate",
            f"{factor:g} × the task's, or searched around it" if factor else "",
            "",
        ),
        ("Merges into the weights", ("yes" if about.get("mergeable") else "no") if about else "", ""),
        ("Package", str(about.get("plugin") or ""), ""),
    ]
    return PageView(
        slug=slug_of(name),
        kind="method",
        title=str(about.get("title") or name),
        name=name,
        facts=tuple(fact for fact in facts if fact[1]),
        paragraphs=_paragraphs(about),
        grids=tuple(grids),
    )


def _decided(board: Board, view: BoardView, label: str) -> list[tuple[Cell, ...]]:
    """Return the pairs of one row that the board tells apart, seen from that row."""
    found: list[tuple[Cell, ...]] = []
    for seen in board.decided.get(label, ()):
        is_better = (seen.difference > 0) is board.higher_is_better
        found.append(
            (
                Cell(text=view.title, sort=view.title, link=f"boards/{view.slug}.html"),
                text_cell(seen.second),
                text_cell("wins" if is_better else "loses"),
                Cell(text=f"{seen.difference:+.4g}".replace("-", "−"), sort=seen.difference),
                Cell(text=f"{seen.adjusted_p_value:.2g}", sort=seen.adjusted_p_value),
            )
        )
    return found


def _settings_text(record: Record) -> str:
    return ", ".join(f"{key}={setting_text(value)}" for key, value in sorted(record.settings.items()))


def _guessing(board: Board) -> str:
    return "" if board.chance is None else f"guessing {chance_text(board)}"


def _settings_grid(settings: Iterable[Mapping[str, Any]]) -> Grid:
    rows = [
        (
            text_cell(str(each.get("name", ""))),
            Cell(text=setting_text(each.get("default"))),
            Cell(text=str(each.get("allowed", ""))),
            text_cell(str(each.get("help", "")), "not documented"),
        )
        for each in settings
    ]
    return table("What can be set", ("Setting", "Default", "Allowed", "Meaning"), rows)


def task_pages(
    boards: Sequence[Board],
    views: Sequence[BoardView],
    across: Sequence[Across],
    records: Sequence[Record],
    catalogue: Catalogue,
) -> list[PageView]:
    """Return a page for each task that there is a board of."""
    data: dict[str, set[str]] = defaultdict(set)
    for record in records:
        data[record.trial.task].add(record.trial.data or "not recorded")
    names = sorted({board.task for board in boards})
    found: dict[str, list[tuple[Board, BoardView]]] = defaultdict(list)
    for board, view in zip(boards, views, strict=True):
        found[board.task].append((board, view))
    return [
        _task_page(
            name,
            found[name],
            [each for each in across if each.task == name],
            data[name],
            catalogue["tasks"].get(name, {}),
        )
        for name in names
    ]


def _task_page(
    name: str,
    boards: Sequence[tuple[Board, BoardView]],
    across: Sequence[Across],
    data: Iterable[str],
    about: Mapping[str, Any],
) -> PageView:
    rows = [
        (
            Cell(text=view.context, sort=view.context, link=f"boards/{view.slug}.html"),
            text_cell(view.leaders),
            methods_cell(view.facts),
            Cell(text=f"{view.facts['seeds']}", sort=view.facts["seeds"]),
        )
        for _, view in boards
    ]
    lines: list[tuple[Cell, ...]]
    grids: list[tuple[str, tuple[Grid, ...]]] = [
        ("Boards", (table(f"Boards of {name}", ("Board", "May be best", "Methods", "Seeds"), rows),))
    ]
    if across:
        grids.append(("Tested across budgets", tuple(map(across_grid, across))))
    if sources := [each for each in about.get("sources", ()) if each.get("hub_id") or each.get("folder")]:
        lines = [
            (
                text_cell(" ".join(filter(None, (each.get("hub_id"), each.get("config")))) or "local tables"),
                text_cell(
                    str(each.get("revision") or ""),
                    "not pinned" if each.get("hub_id") else "local tables are known by their content",
                ),
                text_cell(str(each.get("licence") or ""), "not said"),
                text_cell(str(each.get("folder") or ""), "hub only"),
            )
            for each in sources
        ]
        columns = ("Data set", "Revision", "Licence", "Folder")
        found = table("Where the data is from", columns, lines, name=lambda row: str(row[3].sort or row[0].text))
        grids.append(("Data", (found,)))
    if metrics := about.get("metrics"):
        lines = [
            (
                text_cell(str(metric.get("title") or key)),
                text_cell(str(metric.get("unit", "")), "none"),
                text_cell("higher" if metric.get("higher_is_better") else "lower"),
                text_cell("yes" if key == about.get("main_metric") else "no"),
                text_cell(str(metric.get("help", "")), "not documented"),
            )
            for key, metric in metrics.items()
        ]
        grids.append(("Metrics", (table("What is measured", ("Metric", "Unit", "Better", "Ranks", "Meaning"), lines),)))
    if recipes := about.get("recipes"):
        names = list(dict.fromkeys(field for recipe in recipes.values() for field in recipe))
        lines = [
            (text_cell(field), *(Cell(text=setting_text(recipe.get(field))) for recipe in recipes.values()))
            for field in names
        ]
        caption = "What the task gives each scale; what trained is in a board's settings"
        grids.append(("Recipes", (table(caption, ("Field", *recipes), lines),)))
    facts = [
        ("Name", name, ""),
        ("Paper", str(about.get("paper") or ""), web_link(about.get("paper"))),
        ("Base model, unless given", str(about.get("model") or ""), ""),
        ("Kind of model", str(about.get("model_kind") or "").replace("_", " "), ""),
        ("Data of these records", ", ".join(sorted(data)), ""),
        ("Data", "generated" if about and not sources else "", ""),
        ("What to know", str(about.get("note") or ""), ""),
        ("Package", str(about.get("plugin") or ""), ""),
    ]
    return PageView(
        slug=slug_of(name),
        kind="task",
        title=str(about.get("title") or name),
        name=name,
        facts=tuple(fact for fact in facts if fact[1]),
        paragraphs=_paragraphs(about),
        grids=tuple(grids),
        figures=_across_budgets(boards),
    )


def _across_budgets(boards: Sequence[tuple[Board, BoardView]]) -> dict[str, Any]:
    """Return the points of all budgets, by what may be compared: scale, model, metric; none where all are one size."""
    groups: dict[str, dict[str, Any]] = {}
    for board, _ in boards:
        key = f"{board.scale} · {board.model} · {metric_title(board, board.main_metric)}"
        group = groups.setdefault(
            key,
            {
                "title": key,
                "metric": metric_title(board, board.main_metric),
                "higherIsBetter": board.higher_is_better,
                "bounds": bounds(board),
                "chance": None,
                "rows": [],
            },
        )
        if group["chance"] is None:
            group["chance"] = short(board.chance)
        known = {(each["label"], each["reference"]) for each in group["rows"] if each["reference"]}
        group["rows"] += [
            point(board, row)
            for row in board.all_rows
            if row.score.value is not None and (row.label, row.is_reference) not in known
        ]
    shown = [group for group in groups.values() if _has_sizes(group["rows"])]
    return {"groups": shown} if shown else {}


def _has_sizes(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the methods of some rows have several budgets, or more than about one size."""
    compared = [row for row in rows if not row["reference"]]
    sizes = [row["parameters"] for row in compared]
    return len({row["budget"] for row in compared}) > 1 or (bool(sizes) and max(sizes) > ONE_SIZE * min(sizes))


def _paragraphs(about: Mapping[str, Any]) -> tuple[str, ...]:
    text = str(about.get("text") or "") if about else NOT_DESCRIBED
    return tuple(part.strip() for part in text.split("\n\n") if part.strip())


def web_link(address: Any) -> str:
    """Return an address that a page may link to; anything but http and https is only text."""
    text = str(address or "")
    return text if text.startswith(("https://", "http://")) else ""
