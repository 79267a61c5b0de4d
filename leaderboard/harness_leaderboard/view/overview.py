"""All boards in one table, what each method is proven better and worse than, and averages over families of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness_leaderboard.boards.family import Family
from harness_leaderboard.boards.model import Board
from harness_leaderboard.view.board import standings_of
from harness_leaderboard.view.model import MISSING, BoardView, Cell, Column, FamilyView, Grid
from harness_leaderboard.view.scores import grouped_notes
from harness_leaderboard.view.text import many, slug_of

BESIDE = "beside: "  # by which the page's filter knows what is not compared, too


def overview(boards: Sequence[Board], views: Sequence[BoardView]) -> Grid:
    """Return one row per board; the columns are also what can be filtered by."""
    heads = {
        "task": "Task",
        "best": "May be best",
        "family": "Family",
        "scale": "Scale",
        "model": "Base model",
        "budget": "Budget",
        "metric": "Metric",
        "methods": "Methods",
        "seeds": "Seeds",
        "tuning": "Tuning trials",
        "detectable": "Shows differences from",
        "unfinished": "Unfinished",
    }
    numbers = ("seeds", "tuning", "detectable", "unfinished")
    helps = {
        "methods": "How many are compared; references stand beside them and are not counted",
        "detectable": "If two methods truly differed by this much, about 4 of 5 such boards, or more, would see it",
        "best": "No method is proven better than these",
        "tuning": "How many trials each method's learning rate was chosen in",
        "unfinished": "Trials that did not finish",
    }
    columns = tuple(
        Column(key=key, title=title, is_number=key in numbers, help=helps.get(key, "")) for key, title in heads.items()
    )
    rows = []
    for board, view in zip(boards, views, strict=True):
        facts, detectable = view.facts, board.analysis.detectable if board.analysis else None
        rows.append(
            (
                Cell(text=board.task, sort=board.task, link=f"boards/{view.slug}.html"),
                Cell(text=view.leaders, sort=view.leaders),
                *(Cell(text=facts[key], sort=facts[key]) for key in ("family", "scale", "model", "budget", "metric")),
                methods_cell(facts),
                Cell(text=f"{facts['seeds']}", sort=facts["seeds"]),
                Cell(text=facts["tuning"], sort=facts["tuning"]),
                Cell(text=f"{detectable:.2g}", sort=detectable)
                if detectable is not None
                else Cell(text=MISSING, note="needs two methods with two seeds each"),
                Cell(text=f"{len(board.failures):,}", sort=len(board.failures)),
            )
        )
    caption = "All boards. Select one to see its methods."
    names = [view.title for view in views]
    return Grid(caption=caption, columns=columns, rows=tuple(rows), notes=_notes(columns, rows, names))


def methods_cell(facts: Mapping[str, Any]) -> Cell:
    """Return how many methods a board compares, which, and which stand beside them."""
    compared, beside = (", ".join(facts[key]) for key in ("methods", "references"))
    below = " · ".join(filter(None, (compared, f"{BESIDE}{beside}" if beside else "")))
    return Cell(text=f"{len(facts['methods'])}", sort=len(facts["methods"]), below=below)


def standings(boards: Sequence[Board]) -> Grid | None:
    """Return how often each method is proven better, worse or neither; ``None`` where there are no methods."""
    found = standings_of(boards)
    if not found:
        return None
    heads = (
        ("Method", "", False),
        ("Boards", "On which it has a row", True),
        ("May be best", "Boards on which no method is proven better", True),
        ("Wins", "Other methods of a board that it is proven better than, over all boards", True),
        ("Not told apart", "Other methods of which a board does not say whether they are better, equal or worse", True),
        ("Losses", "That are proven better", True),
    )
    order = sorted(
        found, key=lambda name: (not found[name]["ranked"], found[name]["losses"] - found[name]["wins"], name)
    )
    rows = [
        (
            Cell(text=name, sort=name, link=f"methods/{slug_of(name)}.html"),
            *(
                Cell(text=f"{found[name][key]:,}", sort=found[name][key])
                if key == "boards" or found[name]["ranked"]
                else Cell(text=MISSING, note="not ranked on any board, so compared with no other")
                for key in _KEYS
            ),
        )
        for name in order
    ]
    columns = tuple(Column(key=title, title=title, help=help, is_number=is_number) for title, help, is_number in heads)
    caption = (
        "How often each method is proven better (wins) or worse (losses) than another of its boards. Boards differ, so "
        "this is a summary and no ranking."
    )
    return Grid(caption=caption, columns=columns, rows=tuple(rows), notes=_notes(columns, rows, order))


def _notes(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], names: Sequence[str]) -> tuple[str, ...]:
    """Return why values are missing: the columns, the reason, the rows."""
    who: dict[tuple[str, str], list[str]] = {}
    for name, row in zip(names, rows, strict=True):
        for column, cell in zip(columns, row, strict=True):
            if cell.note:
                who.setdefault((column.title, cell.note), []).append(name)
    return tuple(grouped_notes(who, len(rows)))


_KEYS = ("boards", "best", "wins", "ties", "losses")


def family_view(family: Family) -> FamilyView:
    """Return a family's table: the average, every task that counts, and which tasks a method lacks."""
    prefix = f"{family.name}/"
    budget = f"budget {family.budget}" if family.budget else "references only"
    tasks = f"average over {len(family.tasks)} of {many(family.task_count, 'task')}"
    heads = ["Method", "Average", *(task.removeprefix(prefix) for task in family.tasks), "Without"]
    rows = [
        (
            Cell(text=f"{line.method} (reference)" if line.is_reference else line.method, sort=line.method),
            Cell(text=MISSING, note="it lacks a task" if family.tasks else "no task that every method has")
            if line.average is None
            else Cell(text=f"{line.average:#.4g}", sort=line.average),
            *(
                Cell(text=MISSING, note="not every seed of it finished, or none was run")
                if value is None
                else Cell(text=f"{value:#.4g}", sort=value)
                for value in line.scores
            ),
            Cell(text=", ".join(task.removeprefix(prefix) for task in line.missing) or "none"),
        )
        for line in family.lines
    ]
    columns = tuple(
        Column(key=f"{place}", title=head, is_number=0 < place < len(heads) - 1) for place, head in enumerate(heads)
    )
    return FamilyView(
        title=f"{family.name}, {tasks} · {family.scale} · {family.model} · {budget}",
        sentence=_family_sentence(family),
        grid=Grid(
            caption=f"{family.name}: averages · {family.scale} · {family.model} · {budget}",
            columns=columns,
            rows=tuple(rows),
        ),
    )


def _family_sentence(family: Family) -> str:
    """Return what is averaged and what is left out."""
    left = ", ".join(family.left_out)
    direction = "higher" if family.higher_is_better else "lower"
    parts = [
        f"Mean of each task's main metric, {direction} is better; in order of the mean, which is no ranking.",
        f"Left out, since not every method has all seeds of it, or its trials are not one comparison: {left}."
        if left
        else "Every task counts.",
    ]
    if len(family.units) > 1:
        parts.append(f"The metrics' units differ: {', '.join(family.units)}.")
    if family.is_partial:
        parts.append("Some tasks were scored on a part of their items: not the whole data.")
    return " ".join(parts)
