"""MLflow as a view of the records.

    harness/uuid                    experiment: one per task
      main                          parent run: the sweep, with its parameters, command and a table of its trials
        uuid/lora/lr0.001/s0        child run: a trial's parameters, data, curves, final numbers and record

Nothing is decided here, and nothing is kept here that a record does not hold, but for readings of the machine while a
trial ran. ``harness_trial_started`` and
``harness_trial_finished`` for each record of a folder make the whole view again, and doing so twice changes
nothing: a run knows the digest of the record that it shows. A run that was cut short is replaced. What a trial trained
stays beside the records: a run says where it is, and holds no second copy.

Where: ``MLFLOW_TRACKING_URI`` if set; else ``mlflow.db`` (SQLite) and ``mlartifacts/`` beside the records.

What it costs on two cores: 1 s of CPU to import MLflow and 1.5 s to create its database, both once and in a
thread that starts with the first trial; then 0.04 s for a trial of 200 points. The curves of running trials
grow only as fast as ``LIVE_FRACTION`` of the time allows; the rest is written when a trial ends.

What is not here: the database (``tracker``), and what of a record goes where in it (``entries``).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from harness import UsageError, hookimpl
from harness_plugins.trackers.mlflow.entries import SYSTEM, local_folder, milliseconds, now
from harness_plugins.trackers.mlflow.tracker import Running, Tracker

if TYPE_CHECKING:
    from pathlib import Path

    from harness import Record, Trial

_running: dict[str, Running] = {}  # by trial id
_trackers: dict[str, Future[Tracker]] = {}  # by tracking URI, or result folder
_one_at_a_time = threading.Lock()


@hookimpl
def harness_trial_started(trial: Trial, environment: Mapping[str, Any]) -> None:
    """Note the trial, and start to open the database without waiting for it."""
    _running[trial.id] = Running(trial, environment, _tracker(environment), now())


@hookimpl
def harness_trial_progress(trial: Trial, step: int, metrics: Mapping[str, float]) -> None:
    """Show the curves so far of all running trials, if the database is open and time allows."""
    running = _running.get(trial.id)
    if running is None:
        return
    running.seen_milliseconds.setdefault(step, now())
    running.waiting.append((step, dict(metrics)))
    running.readings.append((step, {name: each for name, each in metrics.items() if name.startswith(SYSTEM)}))
    opening = running.opening
    if opening.done() and opening.exception() is None:  # if it failed, the end of the trial says so
        opening.result().show([each for each in _running.values() if each.opening is opening])


@hookimpl
def harness_trial_finished(trial: Trial, record: Record) -> None:
    """Write whatever the record holds and the run does not yet."""
    running = _running.pop(trial.id, None)
    if running is None:
        started = milliseconds(record.started_at)
        running = Running(trial, record.environment, _tracker(record.environment), started)
    sweep = running.environment.get("sweep")
    busy = any(other.environment.get("sweep") == sweep for other in _running.values())
    running.opening = _tracker(running.environment)  # another one, if that of the trial's start failed
    running.opening.result().finish(record, running, sweep_goes_on=busy)


@hookimpl
def harness_sweep_finished() -> None:
    """Write what is known of the sweeps only now: their parameters and the table of their trials."""
    for opening in _trackers.values():
        if opening.done() and opening.exception() is None:
            opening.result().summarise()


def _tracker(environment: Mapping[str, Any]) -> Future[Tracker]:
    """Return the tracker of this environment; the first call starts to open it and does not wait.

    One that failed to open is not kept: the reason may be gone, e.g. another sweep that created the same database.
    """
    root = str(environment["results_root"])
    uri = os.environ.get("MLFLOW_TRACKING_URI") or None
    folder = None
    if uri is None:
        folder = local_folder(root)
        if folder is None:
            raise UsageError(
                f"MLflow's default database lies beside the results, and {root!r} is not a local folder. "
                "Set MLFLOW_TRACKING_URI to a server's address, or pass --no-mlflow."
            )
    where = uri if folder is None else folder
    assert where is not None, "one of the two is known"
    known = _trackers.get(str(where))
    if known is None or (known.done() and known.exception() is not None):
        _trackers[str(where)] = _open(where)
    return _trackers[str(where)]


def _open(where: str | Path) -> Future[Tracker]:
    """Start to open a store. A command that leaves meanwhile does not wait for it, as it would for a pool's thread."""
    opening: Future[Tracker] = Future()

    def run() -> None:
        with _one_at_a_time:
            try:
                opening.set_result(Tracker(where))
            except BaseException as error:  # noqa: BLE001  whoever asks for the result gets it
                opening.set_exception(error)

    threading.Thread(target=run, name="mlflow", daemon=True).start()
    return opening
