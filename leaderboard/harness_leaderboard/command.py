"""``harness leaderboard``: the records as pages, alone or served while a sweep runs, and what changed between two."""

from __future__ import annotations

import gc
import json
import os
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import TYPE_CHECKING

import click

from harness.errors import writing

if TYPE_CHECKING:
    from harness_leaderboard.load import Loaded
    from harness_leaderboard.view.model import SiteView


class Root(click.types.StringParamType):
    """A result root. That of the environment is one, whatever signs it holds."""

    name = "url"

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        """Return the variable's value as it is: a folder's name may hold spaces, and a URL colons."""
        return [rv]


class WithRoots(click.Group):
    """A group that takes result roots first also without ``--results``: ``harness leaderboard results``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line."""
        roots: list[str] = []
        while args and not args[0].startswith("-") and args[0] not in self.commands:
            roots += ["--results", args.pop(0)]
        return super().parse_args(ctx, roots + args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return what the usage line says."""
        return ["[ROOT]...", *super().collect_usage_pieces(ctx)]


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


@click.group(cls=WithRoots, invoke_without_command=True)
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
@click.option(
    "--json",
    "json_file",
    is_flag=False,
    flag_value="-",
    type=click.Path(dir_okay=False, allow_dash=True),
    metavar="[FILE]",
    help="Instead of pages, write what they show as JSON, alone to standard output.",
)
@click.pass_context
def leaderboard(context: click.Context, roots: Sequence[str], output: Path, open_: bool, json_file: str | None) -> None:
    """Render the records as self-contained HTML pages, with Markdown, CSV and LaTeX beside them."""
    if context.invoked_subcommand is not None:
        return
    from harness_leaderboard.load import load
    from harness_leaderboard.write.csv import everything
    from harness_leaderboard.write.html import write_site
    from harness_leaderboard.write.terminal import document

    loaded = load(roots)
    if json_file is not None:
        with writing(json_file), click.open_file(json_file, "w", encoding="utf-8", atomic=json_file != "-") as file:
            file.write(everything(view_of(loaded, None)))
        return
    with writing(output):  # before the work
        output.mkdir(parents=True, exist_ok=True)
    gc.freeze()  # records live to the end: nothing need look through them again
    view = view_of(loaded, output)
    with writing(output):
        page = write_site(view, output)
    click.echo(document(view.boards, view.families))
    click.echo(f"{view.record_count} records -> {page}", err=True)
    if open_:
        webbrowser.open(page.resolve().as_uri())


@leaderboard.command()
@results_option
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--open", "open_", is_flag=True, help="Open the page in the browser.")
@click.option("--json", "as_json", is_flag=True, help="Print the address as JSON.")
def serve(roots: Sequence[str], port: int, open_: bool, as_json: bool) -> None:
    """Show the pages on this machine while a sweep runs: they are renewed as records come."""
    from harness.errors import UsageError
    from harness_leaderboard.live import LOOPBACK, Site, renewing, server
    from harness_leaderboard.load import load
    from harness_leaderboard.write.html import write_site

    with TemporaryDirectory(prefix="leaderboard-") as name:
        folder = Path(name)

        def build() -> tuple[int, Sequence[str]]:
            view = view_of(load(roots, may_be_empty=True), None)
            write_site(view, folder, live=True)
            return view.record_count, [text for board in view.boards for text in board.failures]

        site = Site(roots, folder, build)
        site.renew()
        try:
            listening = server(site, port)
        except OSError as error:
            raise UsageError(f"--port {port}: {error}; give another, or 0 for a free one") from error
        stop = Event()
        thread = renewing(site, stop)
        address = f"http://{LOOPBACK}:{listening.server_port}/"
        if as_json:
            click.echo(json.dumps({"address": address}))
        else:
            click.echo(f"{address}  (Ctrl-C ends it)", err=True)
        if open_:
            webbrowser.open(address)
        try:
            listening.serve_forever()
        except KeyboardInterrupt:
            click.echo("ended", err=True)
        finally:
            stop.set()
            listening.server_close()
            thread.join()


@leaderboard.command()
@click.argument("old", type=Root())
@click.argument("new", type=Root())
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def diff(old: str, new: str, as_json: bool) -> None:
    """Say what changed from one result root to another: scores, ranks, what came and what went."""
    from harness_leaderboard.boards.build import build_boards
    from harness_leaderboard.load import load
    from harness_leaderboard.view.changes import changes
    from harness_leaderboard.write.csv import rows
    from harness_leaderboard.write.terminal import table

    before, after = (build_boards(load([root]).records) for root in (old, new))
    found = changes(before, after)
    click.echo(rows(found) if as_json else table(found))


def view_of(loaded: Loaded, output: Path | None) -> SiteView:
    """Return what there is to show of some records, with links to the files that a site in ``output`` can reach."""
    from harness.results.store import Store
    from harness_leaderboard.boards.across import build_across
    from harness_leaderboard.boards.build import build_boards
    from harness_leaderboard.view.site import site_view
    from harness_leaderboard.view.trials import Files

    folders = {root: Store(root).local for root in {root for root, _ in loaded.places.values()}}
    seen = {root: _link(folder, output) for root, folder in folders.items() if folder and output}
    links = {}
    for record in loaded.records:
        root, name = loaded.places[record.trial_id]
        if (folder := folders[root]) and seen.get(root):
            there = {kind: file for kind, file in record.artifacts.items() if (folder / file).is_file()}
            links[record.trial_id] = Files(seen[root], name, there)
    boards = build_boards(loaded.records)
    return site_view(
        loaded.records,
        boards,
        build_across(boards, loaded.records),
        catalogue=loaded.catalogue,
        passed_over=loaded.passed_over,
        links=links,
        findings=loaded.findings,
    )


def _link(folder: Path, output: Path) -> str:
    """Return a result root as seen from the site; empty: it cannot be seen from there."""
    try:
        return Path(os.path.relpath(folder.resolve(), output.resolve())).as_posix()
    except ValueError:  # on another drive
        return ""
