"""Every trial in full: specification, result, curves, environment, and the command that makes it again.

There may be tens of thousands, so they are made one shard after another, and nothing of one is kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from harness.contract.record import Record
from harness.results.catalogue import Catalogue
from harness.results.reproduce import command
from harness_leaderboard.boards.notes import NOT_SHOWN
from harness_leaderboard.view.curves import thinned
from harness_leaderboard.view.figures import short
from harness_leaderboard.view.text import slug_of

SHARD_DIGITS = 2  # of a trial's id: 256 files at most, so that 20,000 trials are 80 in each


class Files(NamedTuple):
    """Where a trial's files are: their folder, as a link from the site's, the record's name, and what is beside it."""

    folder: str
    record: str
    artifacts: Mapping[str, str]


def trial_shards(
    records: Sequence[Record], catalogue: Catalogue, files: Mapping[str, Files], boards: Mapping[str, str]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield ``(shard, {"trials": {id: trial}, "shared": [...]})``; what many trials share is said once per shard.

    Args:
        records: All of them.
        catalogue: Says which setting a method's budget solves.
        files: Of each trial; one without is not linked.
        boards: File of each trial's board.
    """
    shards: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        shards[record.trial_id[:SHARD_DIGITS]].append(record)
    for shard in sorted(shards):
        shared: list[Any] = []
        places: dict[int, int] = {}
        trials = {}
        for record in shards[shard]:
            environment = record.environment
            if id(environment) not in places:
                places[id(environment)] = len(shared)
                shared.append({key: value for key, value in environment.items() if key not in NOT_SHOWN})
            own = files.get(record.trial_id, Files("", "", {}))
            trials[record.trial_id] = {
                **_trial(record, catalogue),
                "environment": places[id(environment)],
                **own._asdict(),
                "board": boards.get(record.trial_id, ""),
            }
        yield shard, {"trials": trials, "shared": shared}


def _trial(record: Record, catalogue: Catalogue) -> dict[str, Any]:
    trial = record.trial
    known = catalogue["methods"].get(trial.method)
    error = record.error or {}
    return {
        "label": trial.label,
        "state": record.state.value,
        "metric": record.main_metric,
        "spec": trial.to_json(),
        "metrics": {name: short(value) for name, value in record.metrics.items()},
        "reasons": dict(record.reasons),
        "counts": dict(record.counts),
        "cost": {name: value if isinstance(value, bool) else short(value) for name, value in record.cost.items()},
        "error": {key: error[key] for key in ("type", "message", "step", "traceback") if error.get(key) is not None},
        "attempts": [
            f"{each.get('state')}, {each.get('started_at')} to {each.get('finished_at')}" for each in record.attempts
        ],
        "started": record.started_at,
        "finished": record.finished_at,
        "curves": _curves(record),
        "command": command(trial, known.get("budget_knob") if known else ""),
        "method": slug_of(trial.method),
        "task": slug_of(trial.task),
    }


def _curves(record: Record) -> dict[str, list[list[float | None]]]:
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for entry in record.history:
        for name, value in (entry.get("metrics") or {}).items():
            if value is not None:
                found[name].append((int(entry["step"]), value))
    return {name: [[step, short(value)] for step, value in thinned(points)] for name, points in found.items()}
