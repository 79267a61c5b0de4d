"""One open MLflow store: sweeps and trials become runs."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from harness import UsageError
from harness_plugins.trackers.mlflow.entries import (
    absolute,
    curves,
    dataset,
    milliseconds,
    parameters,
    points_of,
    result_tags,
    source,
    summary_table,
    sweep_parameters,
    trial_tags,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

    from harness import Record, Trial

LIVE_FRACTION = 0.005  # of the time since the database was opened, for showing trials before they end
RUN_STATUS = {"complete": "FINISHED", "interrupted": "KILLED"}  # of every other state: FAILED
KIND = {"mlflow.experimentKind": "custom_model_development"}  # else the page takes it for one of language-model traces
SUMMARY = "summary.json"  # the artifact of a sweep's run that its page shows as a table
LOCK = ".mlflow.lock"
LOCK_SECONDS = 60.0
QUIET = {  # unless the user says otherwise
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # a server that is gone costs seconds, not minutes
}


@dataclass
class Running:
    """A trial between its first and its last hook.

    Attributes:
        trial: What runs.
        environment: As given when it started; its ``results_root`` and ``sweep`` say where the trial belongs.
        opening: The tracker, which may still be opening its database.
        started_milliseconds: Since the epoch.
        seen_milliseconds: When each reported step was reported, since the epoch.
        waiting: What was reported and is not yet shown: ``(step, metrics)``.
        readings: Of the machine, while the trial ran: ``(step, metrics)``. Records do not hold them.
        shown: ``(metric, step)`` of the points in the database.
        run_id: Its run, once there is one.
    """

    trial: Trial
    environment: Mapping[str, Any]
    opening: Future[Tracker]
    started_milliseconds: int
    seen_milliseconds: dict[int, int] = field(default_factory=dict)
    waiting: list[tuple[int, Mapping[str, float]]] = field(default_factory=list)
    readings: list[tuple[int, Mapping[str, float]]] = field(default_factory=list)
    shown: set[tuple[str, int]] = field(default_factory=set)
    run_id: str | None = None


class Tracker:
    """One open tracking store.

    Args:
        where: MLflow tracking URI, or the local result folder beside whose records the database is.
    """

    def __init__(self, where: str | Path) -> None:
        for name, value in QUIET.items():  # MLflow reads these while it is imported
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        for name in ("mlflow.store.db.utils", "alembic"):  # which announce every table that they create
            logging.getLogger(name).setLevel(logging.WARNING)
        self.artifacts: str | None = None  # of new experiments; None: the server says
        if isinstance(where, Path):
            self.artifacts = (where / "mlartifacts").as_uri()
            self.client = _open(where)
        else:
            self.client = MlflowClient(tracking_uri=where)
        self.parents: dict[tuple[str, ...], tuple[str, str]] = {}  # (task, sweep, root): (experiment, run)
        self.ended: dict[str, int] = {}  # last end of a trial, milliseconds since the epoch, by parent run
        self.touched: dict[str, str] = {}  # parent runs whose trials are not yet summed up: their experiments
        self.opened_seconds = time.monotonic()
        self.live_seconds = 0.0

    def show(self, trials: Iterable[Running]) -> None:
        """Write the waiting points of all trials, unless showing them has had its share of the time.

        Of all, not only of the one that reports: the first lane of a pack would leave the others nothing.
        """
        began = time.monotonic()
        if self.live_seconds > LIVE_FRACTION * (began - self.opened_seconds):
            return
        for running in trials:
            points = [
                point
                for step, metrics in running.waiting
                for point in points_of("", metrics, step, running.seen_milliseconds[step])
            ]
            run_id = running.run_id or self._begin(running, running.started_milliseconds, trains_now=True)
            self.client.log_batch(run_id, metrics=points)
            running.shown.update((point.key, point.step) for point in points)
            running.waiting.clear()
        self.live_seconds += time.monotonic() - began

    def finish(self, record: Record, running: Running, *, sweep_goes_on: bool) -> None:
        """Make the trial's run say what the record says. A run that already does is left alone."""
        text = record.dumps()
        digest = hashlib.sha256(text.encode()).hexdigest()
        experiment, parent = self._parent(running, milliseconds(record.started_at))
        if not any(_shows(run, digest) for run in self._runs(experiment, record.trial)):
            self._write(record, text, digest, running)
        self.touched[parent] = experiment
        self.ended[parent] = max(milliseconds(record.finished_at), self.ended.get(parent, 0))
        if not sweep_goes_on:
            self.client.set_terminated(parent, "FINISHED", self.ended[parent])

    def _write(self, record: Record, text: str, digest: str, running: Running) -> None:
        from mlflow.entities import RunTag

        run_id = running.run_id or self._begin(running, milliseconds(record.started_at))
        self.client.log_text(run_id, text, f"{record.trial_id}.json")
        self.client.log_batch(
            run_id,
            metrics=[
                point
                for point in (*_readings(running), *curves(record, running.seen_milliseconds))
                if (point.key, point.step) not in running.shown
            ],
            tags=[
                RunTag(*tag)
                for tag in {
                    **result_tags(record, str(running.environment["results_root"])),
                    "record_sha256": digest,
                }.items()
            ],
        )
        # The status comes last: a crash before it leaves a run that is RUNNING, which the next call replaces.
        status = RUN_STATUS.get(record.state.value, "FAILED")
        self.client.set_terminated(run_id, status, milliseconds(record.finished_at))

    def _begin(self, running: Running, started_milliseconds: int, *, trains_now: bool = False) -> str:
        """Create the run of a trial, in place of what an earlier try left, and return its id."""
        from mlflow.entities import Param

        trial = running.trial
        experiment, parent = self._parent(running, started_milliseconds)
        tags = {**trial_tags(trial, running.environment), "mlflow.parentRunId": parent}
        for run in self._runs(experiment, trial):
            ours = run.data.tags.get("results_root") == tags["results_root"]  # others may share the server
            if ours and run.info.status in {"RUNNING", "KILLED", "FAILED"}:
                self.client.delete_run(run.info.run_id)
        if trains_now:
            self.client.update_run(parent, status="RUNNING")
        run_id: str = self.client.create_run(
            experiment, start_time=started_milliseconds, tags=tags, run_name=trial.label
        ).info.run_id
        self.client.log_batch(run_id, params=[Param(key, value) for key, value in parameters(trial).items()])
        self.client.log_inputs(run_id, [dataset(trial)])
        running.run_id = run_id
        return run_id

    def _parent(self, running: Running, started_milliseconds: int) -> tuple[str, str]:
        """Return the ids of the task's experiment and of the sweep's run in it; make them if need be."""
        trial, environment = running.trial, running.environment
        sweep, root = str(environment.get("sweep", "")), absolute(environment)
        key = (trial.task, sweep, root)
        if key in self.parents:
            return self.parents[key]
        name = f"harness/{trial.task}"
        found = self.client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self.client.create_experiment(name, self.artifacts, KIND)
        if found and not KIND.keys() & found.tags.keys():
            self.client.set_experiment_tag(experiment, *next(iter(KIND.items())))
        tags = {"kind": "sweep", "sweep": sweep, "results_root": root}
        for run in self.client.search_runs([experiment], "tags.kind = 'sweep'"):
            if all(run.data.tags.get(tag) == value for tag, value in tags.items()):
                self.parents[key] = experiment, run.info.run_id
                return self.parents[key]
        tags |= source(environment)
        command = str(environment.get("command", ""))
        asked = f"\n\n    {command}" if command else ""
        tags["mlflow.note.content"] = f"Sweep `{sweep}` on task `{trial.task}`; records in `{root}`.{asked}"
        tags |= {"command": command} if command else {}
        parent = self.client.create_run(
            experiment, start_time=started_milliseconds, tags=tags, run_name=sweep or "sweep"
        )
        self.parents[key] = experiment, parent.info.run_id
        return self.parents[key]

    def summarise(self) -> None:
        """Write into each sweep's run what all its trials say: its parameters, and a table of them."""
        from mlflow.exceptions import MlflowException

        for parent, experiment in self.touched.items():
            children = list(self.client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'"))
            for name, value in sweep_parameters(children).items():
                self.client.set_tag(parent, name, value)
                with suppress(
                    MlflowException
                ):  # an earlier command's sweep was smaller: parameters are final, tags not
                    self.client.log_param(parent, name, value)
            self.client.log_dict(parent, summary_table(children), SUMMARY)
            self.client.set_tag(parent, "mlflow.loggedArtifacts", json.dumps([{"path": SUMMARY, "type": "table"}]))
        self.touched.clear()

    def _runs(self, experiment: str, trial: Trial) -> list[Run]:
        return list(self.client.search_runs([experiment], f"tags.trial_id = '{trial.id}'"))


def _readings(running: Running) -> Iterator[Metric]:
    for step, numbers in running.readings:
        yield from points_of("", numbers, step, running.seen_milliseconds[step])


def _open(folder: Path) -> MlflowClient:
    """Open the database of a result folder, made if it is not there: by one command at a time.

    Raises:
        UsageError: It cannot be opened; the message says what to do.
    """
    from filelock import FileLock, Timeout
    from mlflow import MlflowClient

    path = folder / "mlflow.db"
    uri, stray = _address(path)
    was_there = stray.exists()
    try:
        with FileLock(folder / LOCK, timeout=LOCK_SECONDS):  # MLflow's own holds only for one spelling of the address
            return MlflowClient(tracking_uri=uri)
    except Timeout as error:
        raise UsageError(
            f"{path} is being created by another command for more than {LOCK_SECONDS} s; when that has ended, "
            f"`harness track rebuild --results {folder}` catches up"
        ) from error
    except Exception as error:
        reason = str(error).partition("\n")[0]
        if re.search("locked|unable to open", reason):  # not the file's fault
            raise
        raise UsageError(
            f"{path} cannot be opened or migrated ({reason}). To go on, move it away and run "
            f"`harness track rebuild --results {folder}`."
        ) from error
    finally:
        if not was_there:
            with suppress(OSError):  # MLflow makes the folder that an address seems to name before it is read
                stray.rmdir()


def _address(path: Path) -> tuple[str, Path]:
    """Return the address that SQLAlchemy reads as this file, and the folder that it names to who does not decode it.

    Version 2.1 decodes per cent signs in it, earlier ones do not; in both a bare question mark ends the path.
    """
    from sqlalchemy.engine import make_url

    for written in (quote(path.as_posix()), path.as_posix()):
        if make_url(f"sqlite:///{written}").database == path.as_posix():
            return f"sqlite:///{written}", Path(written).parent
    raise UsageError(
        f"MLflow's database cannot lie in {str(path.parent)!r}: SQLAlchemy reads a question mark as a path's end. "
        "Give another folder with --results, set MLFLOW_TRACKING_URI, or pass --no-mlflow."
    )


def _shows(run: Run, digest: str) -> bool:
    """Return whether the run shows, completely, the record of this digest."""
    return run.data.tags.get("record_sha256") == digest and run.info.status != "RUNNING"
