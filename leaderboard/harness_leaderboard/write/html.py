"""The view as a site of static pages that opens from a disk, needs no network, and runs no script but its own."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from harness_leaderboard.view.details import MOST_PAIRS
from harness_leaderboard.view.model import BoardView, Cell, PageView, SiteView
from harness_leaderboard.view.text import printable, slug_of
from harness_leaderboard.write import csv, latex, markdown
from harness_leaderboard.write.csv import finite

# The one style element that Observable Plot puts into each figure, by its digest.
PLOT_STYLE = "'sha256-+TfQir1nvDucAdvE6XUQBt4ayUjpAWkbw2kCdSfekHM='"
# Scripts and styles come from the site's own folder only; nothing is loaded from, or sent to, anywhere else.
POLICY = (
    f"default-src 'none'; script-src 'self'; style-src 'self' {PLOT_STYLE}; img-src data: blob:; "
    "connect-src {connect}; base-uri 'none'; form-action 'none'"
)
TABLES = ("vendor/dataTables.min.js", "site.js", "tables.js")
FIGURES = ("vendor/d3.min.js", "vendor/plot.umd.min.js", "figures.js")
MANIFEST = ".leaderboard-files"  # what was written the last time, so that a board that is gone leaves no page


def write_site(view: SiteView, output: Path, *, live: bool = False) -> Path:
    """Write the site and return its first page.

    Args:
        view: What to show.
        output: A folder; made if it is not there. Files of an earlier site that are not written again are removed.
        live: For a server that answers what is new; the pages then ask it.
    """
    writer = _Writer(view, output, live)
    writer.everything()
    return output / "index.html"


class _Writer:
    """Fills templates and writes files, noting which."""

    def __init__(self, view: SiteView, output: Path, live: bool) -> None:
        self.view, self.output, self.live = view, output, live
        self.written: set[str] = set()
        self.environment = Environment(
            loader=PackageLoader("harness_leaderboard.write", "pages"),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=lambda value: printable(value) if type(value) is str else value,  # Markup is our own
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.environment.globals["cell"] = _cell
        self.environment.globals["data_url"] = lambda picture: (
            f"data:image/png;base64,{b64encode(picture.png).decode()}"
        )

    def everything(self) -> None:
        """Write all pages, data and downloads."""
        view = self.view
        self._assets(files("harness_leaderboard.write") / "assets", "assets")
        for board in view.boards:
            self._board(board)
        for page in (*view.methods, *view.tasks, *view.analyses):
            self._page(page)
        for shard, trials in view.trials:
            self._write(f"data/trials/{shard}.js", f"leaderboard.trials({_json(trials)});\n")
        self._render("trial.html", "trial.html.j2", (*TABLES, *FIGURES, "trial.js"))
        self._write("leaderboard.md", markdown.document(view.boards, view.families, view.passed_over))
        self._write("leaderboard.csv", csv.lines(view.boards))
        self._write("leaderboard.tex", latex.document(view.boards))
        self._render(
            "index.html",
            "index.html.j2",
            (*TABLES, *((*FIGURES, "live.js") if self.live else ())),
            filters=self._filters(),
        )
        self._remove_what_is_gone()

    def _filters(self) -> list[tuple[str, str, list[str]]]:
        """Return what the overview can be filtered by: the column, its title, its values."""
        facts = [{**board.facts, "task": board.task} for board in self.view.boards]
        found = [
            (key, title, sorted({str(each[key]) for each in facts}))
            for key, title in (
                ("task", "Task"),
                ("family", "Family"),
                ("scale", "Scale"),
                ("model", "Base model"),
                ("budget", "Budget"),
            )
        ]
        methods = sorted({name for each in facts for key in ("methods", "references") for name in each[key]})
        return [*found, ("methods", "Method", methods)]

    def _board(self, board: BoardView) -> None:
        pairs = dict(board.pairs)
        if len(pairs["pairs"]) > MOST_PAIRS:  # a file of their own, read when they are asked for
            opens = {pairs["opens"]["this"], pairs["opens"]["against"]}
            pairs["file"] = f"data/pairs/{board.slug}.js"
            self._write(pairs["file"], f"leaderboard.pairs({_json(pairs['pairs'])});\n")
            pairs["pairs"] = [each for each in pairs["pairs"] if {each["first"], each["second"]} == opens]
        if board.items is not None:
            self._write(f"data/items/{board.slug}.js", f"leaderboard.items({_json(board.items)});\n")
        self._render(
            f"boards/{board.slug}.html",
            "board.html.j2",
            (*TABLES, *FIGURES, "compare.js"),
            board=board,
            task_slug=slug_of(board.task),
            leaders={place for place, row in enumerate(board.scores.rows) if row[0].text.split("–")[0] == "1"},
            cost_note=" ".join(board.cost_notes),
            figures_json=_island(board.figures),
            pairs_json=_island({**pairs, "items": f"data/items/{board.slug}.js" if board.items else ""}),
        )
        self._write(f"boards/{board.slug}.csv", csv.lines([board]))
        self._write(f"boards/{board.slug}.json", csv.objects(board))
        self._write(f"boards/{board.slug}.md", markdown.board(board) + "\n")
        self._write(f"boards/{board.slug}.tex", latex.document([board]))

    def _page(self, page: PageView) -> None:
        scripts = (*TABLES, *FIGURES) if page.figures else TABLES
        figures = _island(page.figures)
        self._render(f"{page.folder}/{page.slug}.html", "page.html.j2", scripts, page=page, figures_json=figures)

    def _render(self, name: str, template: str, scripts: tuple[str, ...], **values: Any) -> None:
        text = self.environment.get_template(template).render(
            up="../" * name.count("/"),
            scripts=scripts,
            policy=POLICY.format(connect="'self'" if self.live else "'none'"),
            live=self.live,
            view=self.view,
            **values,
        )
        self._write(name, text.strip() + "\n")

    def _write(self, name: str, text: str) -> None:
        path = self.output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
        self.written.add(name)

    def _assets(self, folder: Traversable, name: str) -> None:
        for each in folder.iterdir():
            if each.is_dir():
                self._assets(each, f"{name}/{each.name}")
            else:
                self._write(f"{name}/{each.name}", each.read_text(encoding="utf-8"))

    def _remove_what_is_gone(self) -> None:
        manifest = self.output / MANIFEST
        before = manifest.read_text(encoding="utf-8").splitlines() if manifest.exists() else []
        for name in set(before) - self.written:
            path = self.output / name
            if path.resolve().is_relative_to(self.output.resolve()):
                path.unlink(missing_ok=True)
        manifest.write_text("".join(f"{name}\n" for name in sorted(self.written)), encoding="utf-8", newline="\n")


def _cell(it: Cell, up: str, head: bool, number: bool, key: str) -> Markup:
    """Return a cell of a table. Of half a million cells, a template would take three times as long."""
    text: str = escape(printable(it.text))
    sort = "" if it.sort is None else escape(printable(str(it.sort)))
    if it.link:
        text = f'<a href="{escape(up + printable(it.link))}">{text}</a>'
    elif it.note:
        kind = "missing" if it.is_missing else "noted"
        text = f'<span class="{kind}" title="{escape(printable(it.note))}">{text}</span>'
    below = f' <span class="below">{escape(printable(it.below))}</span>' if it.below else ""
    kinds = f"{'number ' if number else ''}c-{escape(key)}"
    start, end = ("th scope=row", "th") if head else ("td", "td")
    return Markup(f'<{start} class="{kinds}" data-order="{sort}">{text}{below}</{end}>')  # noqa: S704 - just escaped


def _json(value: Any) -> str:
    """Return JSON that may stand in a script. A number that JSON has not, an endless interval's end, is ``null``."""
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:
        return json.dumps(finite(value), separators=(",", ":"), allow_nan=False)


def _island(value: Mapping[str, Any]) -> Markup:
    """Return JSON that may stand inside an element of a page: no sign that HTML would read."""
    text = _json(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return Markup(text)  # noqa: S704 - just escaped
