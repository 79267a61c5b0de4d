"""What guessing scores, for records that do not say it: from others beside them, of the same test set.

<root>/guessing/<trial id>.json    records like any, of whatever method and base, that no board shows

A record is written once, so one of before its task said what guessing scores never will. But that depends on the test
set alone, not on what was scored: a record of the same task, data and recipe, made since, says it for all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from harness.contract.record import Record
from harness.results.index import Index
from harness.results.store import Store
from harness_leaderboard.boards.model import canonical, is_finished

FOLDER = "guessing"
OF_TRAINING = ("steps", "epochs", "evaluate_at", "checkpoint")  # of a recipe: the items scored at the end are the same


def with_guessing(records: Sequence[Record], store: Store, problems: dict[str, str]) -> list[Record]:
    """Return records that say what guessing scores, and who says it, wherever one beside them does.

    Args:
        records: Of a result root.
        store: The result root.
        problems: Gets the files beside them that are no record: ``{path: why}``.
    """
    beside = Store(f"{store.root.rstrip('/')}/{FOLDER}")
    if not beside.filesystem.isdir(beside.path):
        return list(records)
    index = Index(beside)
    found: dict[str, list[Record]] = defaultdict(list)
    for record in index.records():
        if is_finished(record):
            found[_test_set(record)].append(record)
    problems |= index.problems
    return [_told(each, found.get(_test_set(each), ())) for each in records]


def _test_set(record: Record) -> str:
    """Return what decides on which items a trial is scored; those of a search are not those of a report."""
    trial = record.trial
    recipe = {name: value for name, value in trial.recipe.items() if name not in OF_TRAINING}
    return canonical([trial.task, trial.data, trial.purpose, recipe])


def _told(record: Record, others: Sequence[Record]) -> Record:
    """Return a record with what others say that guessing scores, where it does not and they have as many items."""
    details = {name: dict(each) for name, each in record.metric_details.items()}
    for name, own in details.items():
        levels = {
            each.trial_id: level
            for each in others
            if (level := each.metric_details.get(name, {}).get("chance")) is not None
            and len(each.items.get(name, ())) == len(record.items.get(name, ()))
        }
        if levels and "chance" not in own:
            own |= {"chance": fmean(levels.values()), "chance_from": sorted(levels)}
    return replace(record, metric_details=details) if details != record.metric_details else record
