"""``harness leaderboard``: the records as pages, alone or served while a sweep runs, and what changed between two."""

from __future__ import annotations

import os
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from harness_leaderboard.load import Loaded
    from harness_leaderboard.view.model import SiteView


class Root(click.types.StringParamType):
    """A result root. That of the environment is one, whatever signs it holds."""

    name = "url"

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        """Return the variable's value as it is: a folder's name may hold spaces, and a URL colons."""
        return [rv]


results_option = click.option(
    "--results",
    "roots",
    multiple=True,
    type=Root(),
    default=["results"],
    show_default=True,
    envvar="HARNESS_RESULTS",
    metavar="URL",
    help="Result root; several are merged.",
)


@click.group(invoke_without_command=True)
@results_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("leaderboard-site"),
    show_default=True,
    help="Folder to write.",
)
@click.option("--open", "open_", is_flag=True, help="Open the page in the browser.")
@click.pass_context
def leaderboard(context: click.Context, roots: Sequence[str], output: Path, open_: bool) -> None:
    """Render the records as self-contained HTML pages, with Markdown, CSV and LaTeX beside them."""
    if context.invoked_subcommand is not None:
        return
    from harness_leaderboard.load import load
    from harness_leaderboard.write.html import write_site
    from harness_leaderboard.write.terminal import document

    loaded = load(roots)
    view = view_of(loaded, output)
    page = write_site(view, output)
    click.echo(document(view.boards, view.families))
    for each in view.passed_over:
        click.echo(f"harness: passed over: {each}", err=True)
    click.echo(f"{view.record_count} records -> {page}", err=True)
    if open_:
        webbrowser.open(page.resolve().as_uri())


def view_of(loaded: Loaded, output: Path | None) -> SiteView:
    """Return what there is to show of some records, with links to those that a site in ``output`` can reach."""
    from harness_leaderboard.boards.build import build_boards
    from harness_leaderboard.view.site import site_view

    prefixes = {root: "" if output is None else _link(root, output) for root in set(loaded.roots.values())}
    links = {trial_id: prefixes[root] for trial_id, root in loaded.roots.items() if prefixes[root]}
    return site_view(
        loaded.records,
        build_boards(loaded.records),
        catalogue=loaded.catalogue,
        passed_over=loaded.passed_over,
        links=links,
    )


def _link(root: str, output: Path) -> str:
    """Return a result root as seen from the site; empty: not a local folder beside it."""
    from harness.results.store import Store

    folder = Store(root).local
    if folder is None:
        return ""
    try:
        return Path(os.path.relpath(folder.resolve(), output.resolve())).as_posix()
    except ValueError:  # on another drive
        return ""
