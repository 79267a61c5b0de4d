"""What is training right now, as a small file beside the records: what a page that is open during a sweep shows.

    <root>/live/<host>-<process>.json       the trials of one command, with the last points of their curves

A view, like every tracker: written at most once a second, deleted when the sweep ends, nobody's truth. A file
that a killed command left is old by its time, and passed over by whoever reads it. One that cannot be written is no
loss.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from harness import hookimpl

if TYPE_CHECKING:
    from harness import Record, Trial

FOLDER = "live"
EVERY_SECONDS = 1.0
MOST_POINTS = 200  # of each trial's curve: when there are more, every second one is dropped

log = logging.getLogger(__name__)

_running: dict[str, dict[str, Any]] = {}  # by trial id
_roots: dict[str, float] = {}  # result root, and when its file was written last


@hookimpl
def harness_trial_started(trial: Trial, environment: Mapping[str, Any]) -> None:
    """Note a trial."""
    steps = trial.recipe.get("steps")  # a word where epochs decide, which the data knows
    _running[trial.id] = {
        "trial": trial.id,
        "label": trial.label,
        "method": trial.method,
        "task": trial.task,
        "steps": steps if isinstance(steps, int) else 0,
        "step": 0,
        "points": {},
        "root": str(environment["results_root"]),
    }
    _show(str(environment["results_root"]))


@hookimpl
def harness_trial_progress(trial: Trial, step: int, metrics: Mapping[str, float]) -> None:
    """Note where a trial is."""
    running = _running.get(trial.id)
    if running is None:
        return
    running["step"] = step
    for name, value in metrics.items():
        points = running["points"].setdefault(name, [])
        points.append([step, value])
        if len(points) > MOST_POINTS:
            del points[1::2]
    _show(running["root"])


@hookimpl
def harness_trial_finished(trial: Trial, record: Record) -> None:
    """Forget a trial: from now on there is its record."""
    running = _running.pop(trial.id, None)
    if running is not None:
        _show(running["root"])


@hookimpl
def harness_sweep_finished() -> None:
    """Leave nothing behind."""
    _running.clear()
    for root in list(_roots):
        filesystem, path = _file(root)
        with suppress(OSError):  # never written, or the folder is gone
            filesystem.rm_file(path)
        del _roots[root]


def _show(root: str) -> None:
    now = time.time()
    if now - _roots.get(root, 0.0) < EVERY_SECONDS:
        return
    _roots[root] = now
    running = [{key: value for key, value in each.items() if key != "root"} for each in _running.values()
               if each["root"] == root]  # fmt: skip
    filesystem, path = _file(root)
    try:
        filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
        filesystem.pipe_file(f"{path}.tmp", json.dumps({"at": now, "running": running}, allow_nan=True).encode())
        filesystem.mv(f"{path}.tmp", path)
    except OSError as error:
        log.debug("%s: %s", path, error)


def _file(root: str) -> tuple[Any, str]:
    import fsspec

    filesystem, base = fsspec.core.url_to_fs(root)
    return filesystem, f"{base.rstrip('/')}/{FOLDER}/{platform.node()}-{os.getpid()}.json"
