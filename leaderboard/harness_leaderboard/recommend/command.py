"""``harness recommend``, and the same words at the end of every run."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from harness import Record, UsageError


@click.command()
@click.option(
    "--task", default="", metavar="NAME", help="Of this task only.  [default: every task there are records of]"
)
@click.option(
    "--results", default="results", show_default=True, envvar="HARNESS_RESULTS", metavar="URL", help="Result root."
)
@click.option("--json", "as_json_", is_flag=True, help="Print JSON.")
def recommend(task: str, results: str, as_json_: bool) -> None:
    """Say which method, budget and rate to use: the cheapest that cannot be told apart from the best."""
    from harness_leaderboard.load import load
    from harness_leaderboard.recommend.choose import recommend as choose
    from harness_leaderboard.recommend.words import as_json, as_text

    records = [each for each in load([results]).records if task in ("", each.trial.task)]
    found = choose(records)
    if not found:
        what = f"of task {task!r} " if task else ""
        raise UsageError(f"no trial {what}in {results!r} has a score yet; run some first (`harness run ...`)")
    if as_json_:
        click.echo(json.dumps([as_json(each) for each in found], indent=1))
    else:
        click.echo("\n\n".join(as_text(each, results) for each in found))


def best_trial(records: Sequence[Record]) -> str:
    """Return the id of the trial to export.

    Raises:
        UsageError: Nothing is scored, or the records are of several comparisons.
    """
    from harness_leaderboard.recommend.choose import recommend as choose

    found = choose(records)
    if not found:
        raise UsageError("no trial has a score yet, so none is best; run some first (`harness run ...`)")
    if len(found) > 1:
        there = sorted({f"{each.best.first.trial.task} on {each.best.first.trial.model}" for each in found})
        raise UsageError(
            f"there are {len(found)} comparisons ({'; '.join(there)}), each with a best of its own; say of which: "
            "--task NAME, or give a trial's id (`harness recommend --json` names them)"
        )
    return found[0].record.trial_id
