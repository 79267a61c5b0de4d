"""``harness leaderboard``: the records as a page."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import click


@click.command()
@click.option(
    "--results",
    default="results",
    show_default=True,
    envvar="HARNESS_RESULTS",
    metavar="URL",
    help="Result root.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("leaderboard-site"),
    show_default=True,
    help="Folder to write.",
)
@click.option("--open", "open_", is_flag=True, help="Open the page in the browser.")
def leaderboard(results: str, output: Path, open_: bool) -> None:
    """Render the records as a self-contained HTML page, with Markdown, CSV and LaTeX beside it."""
    from harness_leaderboard.build import build
    from harness_leaderboard.load import load_records
    from harness_leaderboard.table import terminal_table

    records = load_records(results)
    page = build(records, output)
    click.echo(terminal_table(records))
    click.echo(f"{len(records)} records -> {page}", err=True)
    if open_:
        webbrowser.open(page.resolve().as_uri())
