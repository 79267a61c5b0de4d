"""MLflow as a view of the records.

    harness/uuid                    experiment: one per task
      main                          parent run: the sweep
        uuid/lora/lr0.001/s0        child run: a trial's parameters, curves, final numbers, record and adapter

Nothing is decided here, and nothing is kept here that a record does not hold. ``harness_trial_started`` and
``harness_trial_finished`` for each record of a folder make the whole view again, and doing so twice changes
nothing: a run knows the digest of the record that it shows. A run that was cut short is replaced.

Where: ``MLFLOW_TRACKING_URI`` if set; else ``mlflow.db`` (SQLite) and ``mlartifacts/`` beside the records.

What it costs on two cores: 1 s of CPU to import MLflow and 1.5 s to create its database, both once and in a
thread that starts with the first trial; then 0.04 s for a trial of 200 points. The curves of running trials
grow only as fast as ``LIVE_FRACTION`` of the time allows; the rest is written when a trial ends.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from harness import UsageError, hookimpl

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

    from harness import Record, Trial

LIVE_FRACTION = 0.005  # of the time since the database was opened, for showing trials before they end
RUN_STATUS = {"complete": "FINISHED", "interrupted": "KILLED"}  # of every other state: FAILED
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
        shown: ``(metric, step)`` of the points in the database.
        run_id: Its run, once there is one.
    """

    trial: Trial
    environment: Mapping[str, Any]
    opening: Future[Tracker]
    started_milliseconds: int
    seen_milliseconds: dict[int, int] = field(default_factory=dict)
    waiting: list[tuple[int, Mapping[str, float]]] = field(default_factory=list)
    shown: set[tuple[str, int]] = field(default_factory=set)
    run_id: str | None = None


_running: dict[str, Running] = {}  # by trial id
_trackers: dict[str, Future[Tracker]] = {}  # by tracking URI
_opener = ThreadPoolExecutor(1, thread_name_prefix="mlflow")


@hookimpl
def harness_trial_started(trial: Trial, environment: Mapping[str, Any]) -> None:
    """Note the trial, and start to open the database without waiting for it."""
    _running[trial.id] = Running(trial, environment, _tracker(environment), _now())


@hookimpl
def harness_trial_progress(trial: Trial, step: int, metrics: Mapping[str, float]) -> None:
    """Show the curves so far of all running trials, if the database is open and time allows."""
    running = _running.get(trial.id)
    if running is None:
        return
    running.seen_milliseconds.setdefault(step, _now())
    running.waiting.append((step, dict(metrics)))
    opening = running.opening
    if opening.done() and opening.exception() is None:  # if it failed, the end of the trial says so
        opening.result().show([each for each in _running.values() if each.opening is opening])


@hookimpl
def harness_trial_finished(trial: Trial, record: Record) -> None:
    """Write whatever the record holds and the run does not yet."""
    running = _running.pop(trial.id, None)
    if running is None:
        started = _milliseconds(record.started_at)
        running = Running(trial, record.environment, _tracker(record.environment), started)
    sweep = running.environment.get("sweep")
    busy = any(other.environment.get("sweep") == sweep for other in _running.values())
    running.opening = _tracker(running.environment)  # another one, if that of the trial's start failed
    running.opening.result().finish(record, running, sweep_goes_on=busy)


def _tracker(environment: Mapping[str, Any]) -> Future[Tracker]:
    """Return the tracker of this environment; the first call starts to open it and does not wait.

    One that failed to open is not kept: the reason may be gone, e.g. another sweep that created the same database.
    """
    root = str(environment["results_root"])
    uri, artifacts = os.environ.get("MLFLOW_TRACKING_URI") or None, None
    if uri is None:
        folder = _local(root)
        if folder is None:
            raise UsageError(
                f"MLflow's default database lies beside the results, and {root!r} is not a local folder. "
                "Set MLFLOW_TRACKING_URI to a server's address, or pass --no-mlflow."
            )
        uri, artifacts = f"sqlite:///{folder.as_posix()}/mlflow.db", (folder / "mlartifacts").as_posix()
    known = _trackers.get(uri)
    if known is None or (known.done() and known.exception() is not None):
        _trackers[uri] = _opener.submit(Tracker, uri, artifacts)
    return _trackers[uri]


class Tracker:
    """One open tracking store.

    Args:
        uri: MLflow tracking URI.
        artifacts: Folder for the artifacts of new experiments; ``None`` leaves it to the server.
    """

    def __init__(self, uri: str, artifacts: str | None) -> None:
        for name, value in QUIET.items():  # MLflow reads these while it is imported
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        for name in ("mlflow.store.db.utils", "alembic"):  # which announce every table that they create
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            self.client = MlflowClient(tracking_uri=uri)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            if artifacts is None or re.search("locked|unable to open", reason):  # not ours, or not the file's fault
                raise
            folder = Path(artifacts).parent
            raise UsageError(
                f"{folder / 'mlflow.db'} cannot be opened or migrated ({reason}). If no other sweep is creating it "
                f"now, move it away and run `harness track rebuild --results {folder}`."
            ) from error
        self.artifacts = artifacts
        self.parents: dict[tuple[str, ...], tuple[str, str]] = {}  # (task, sweep, root): (experiment, run)
        self.ended: dict[str, int] = {}  # last end of a trial, milliseconds since the epoch, by parent run
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
                for point in _points("", metrics, step, running.seen_milliseconds[step])
            ]
            run_id = running.run_id or self._begin(running, running.started_milliseconds)
            self.client.log_batch(run_id, metrics=points)
            running.shown.update((point.key, point.step) for point in points)
            running.waiting.clear()
        self.live_seconds += time.monotonic() - began

    def finish(self, record: Record, running: Running, *, sweep_goes_on: bool) -> None:
        """Make the trial's run say what the record says. A run that already does is left alone."""
        text = record.dumps()
        digest = hashlib.sha256(text.encode()).hexdigest()
        experiment, parent = self._parent(running, _milliseconds(record.started_at))
        if not any(_shows(run, digest) for run in self._runs(experiment, record.trial)):
            self._write(record, text, digest, running)
        self.ended[parent] = max(_milliseconds(record.finished_at), self.ended.get(parent, 0))
        if not sweep_goes_on:
            self.client.set_terminated(parent, "FINISHED", self.ended[parent])

    def _write(self, record: Record, text: str, digest: str, running: Running) -> None:
        from mlflow.entities import RunTag

        run_id = running.run_id or self._begin(running, _milliseconds(record.started_at))
        with TemporaryDirectory() as folder:
            for path in _artifacts(record, text, str(running.environment["results_root"]), Path(folder)):
                self.client.log_artifact(run_id, str(path))
        self.client.log_batch(
            run_id,
            metrics=[
                point
                for point in _curves(record, running.seen_milliseconds)
                if (point.key, point.step) not in running.shown
            ],
            tags=[RunTag(*tag) for tag in {**_result_tags(record), "record_sha256": digest}.items()],
        )
        # The status comes last: a crash before it leaves a run that is RUNNING, which the next call replaces.
        status = RUN_STATUS.get(record.state.value, "FAILED")
        self.client.set_terminated(run_id, status, _milliseconds(record.finished_at))

    def _begin(self, running: Running, started_milliseconds: int) -> str:
        """Create the run of a trial, in place of what an earlier try left, and return its id."""
        from mlflow.entities import Param

        trial = running.trial
        experiment, parent = self._parent(running, started_milliseconds)
        tags = {**_trial_tags(trial, running.environment), "mlflow.parentRunId": parent}
        for run in self._runs(experiment, trial):
            ours = run.data.tags.get("results_root") == tags["results_root"]  # others may share the server
            if ours and run.info.status in {"RUNNING", "KILLED", "FAILED"}:
                self.client.delete_run(run.info.run_id)
        if trial.id in _running:  # it trains now
            self.client.update_run(parent, status="RUNNING")
        run_id: str = self.client.create_run(
            experiment, start_time=started_milliseconds, tags=tags, run_name=trial.label
        ).info.run_id
        self.client.log_batch(run_id, params=[Param(key, value) for key, value in _parameters(trial).items()])
        running.run_id = run_id
        return run_id

    def _parent(self, running: Running, started_milliseconds: int) -> tuple[str, str]:
        """Return the ids of the task's experiment and of the sweep's run in it; make them if need be."""
        trial, environment = running.trial, running.environment
        sweep, root = str(environment.get("sweep", "")), _absolute(environment)
        key = (trial.task, sweep, root)
        if key in self.parents:
            return self.parents[key]
        name = f"harness/{trial.task}"
        found = self.client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self.client.create_experiment(name, self.artifacts)
        tags = {"kind": "sweep", "sweep": sweep, "results_root": root}
        for run in self.client.search_runs([experiment], "tags.kind = 'sweep'"):
            if all(run.data.tags.get(tag) == value for tag, value in tags.items()):
                self.parents[key] = experiment, run.info.run_id
                return self.parents[key]
        tags |= _source(environment)
        tags["mlflow.note.content"] = f"Sweep `{sweep}` on task `{trial.task}`; records in `{root}`."
        parent = self.client.create_run(
            experiment, start_time=started_milliseconds, tags=tags, run_name=sweep or "sweep"
        )
        self.parents[key] = experiment, parent.info.run_id
        return self.parents[key]

    def _runs(self, experiment: str, trial: Trial) -> list[Run]:
        return list(self.client.search_runs([experiment], f"tags.trial_id = '{trial.id}'"))


def _shows(run: Run, digest: str) -> bool:
    """Return whether the run shows, completely, the record of this digest."""
    return run.data.tags.get("record_sha256") == digest and run.info.status != "RUNNING"


def _parameters(trial: Trial) -> dict[str, str]:
    """Flatten the trial: nested settings as ``config/r``, lists and layer-wise settings as JSON."""
    flat: dict[str, str] = {}
    for key, value in trial.to_json().items():
        if isinstance(value, dict) and key != "layer_settings":  # a parameter per layer would drown the others
            flat |= {_name(f"{key}/{name}"): _text(each) for name, each in value.items()}
        else:
            flat[key] = _text(value)
    return flat


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _trial_tags(trial: Trial, environment: Mapping[str, Any]) -> dict[str, str]:
    keys = ("task", "scale", "method", "model", "budget", "seed", "learning_rate", "precision", "purpose")
    return {
        "kind": "trial",
        "trial_id": trial.id,
        "sweep": str(environment.get("sweep", "")),
        "results_root": _absolute(environment),
        "mlflow.note.content": f"`{trial.label}`, trial `{trial.id}`: running.",
        **{key: str(getattr(trial, key)) for key in keys},
        **_source(environment),
    }


def _source(environment: Mapping[str, Any]) -> dict[str, str]:
    commit = environment.get("git_commit")
    return {"mlflow.source.name": "harness", **({"mlflow.source.git.commit": str(commit)} if commit else {})}


def _result_tags(record: Record) -> dict[str, str]:
    tags = {"state": record.state.value}
    tags |= {_name(f"reason/{metric}"): reason for metric, reason in record.reasons.items()}
    if record.error is not None:
        error = {key: record.error.get(key) for key in ("type", "message", "step")}
        tags |= {f"error/{key}": str(value) for key, value in error.items() if value is not None}
        result = f"{error['type']}: {error['message']}"
    elif record.score is not None:
        result = f"{record.main_metric} {record.score:g}"
    else:
        result = f"{record.main_metric}: {record.reasons.get(record.main_metric, 'none')}"
    note = f"`{record.trial.label}`, trial `{record.trial_id}`: {record.state.value}. {result}"
    return {**tags, "mlflow.note.content": note}


def _curves(record: Record, seen_milliseconds: Mapping[int, int]) -> Iterator[Metric]:
    """Yield the history and, at the last step, the final numbers.

    A record holds no time for a step: one that nobody saw is placed between start and end, by its number.
    """
    began, ended = _milliseconds(record.started_at), _milliseconds(record.finished_at)
    last = max((int(entry["step"]) for entry in record.history), default=0)
    for entry in record.history:
        step = int(entry["step"])
        estimate = began + round((ended - began) * step / max(last, 1))
        yield from _points("", entry["metrics"], step, seen_milliseconds.get(step, estimate))
    for group, numbers in (("final", record.metrics), ("cost", record.cost), ("count", record.counts)):
        yield from _points(f"{group}/", numbers, last, ended)


def _points(prefix: str, numbers: Mapping[str, Any], step: int, milliseconds: int) -> Iterator[Metric]:
    from mlflow.entities import Metric

    for name, value in numbers.items():
        if isinstance(value, int | float):  # None: not measured; the record says why
            yield Metric(_name(prefix + name), float(value), milliseconds, step)


def _artifacts(record: Record, text: str, root: str, folder: Path) -> Iterator[Path]:
    """Yield the record and the files that it names, as local files; remote ones are fetched."""
    import fsspec

    path = folder / f"{record.trial_id}.json"
    path.write_text(text, encoding="utf-8")
    yield path
    filesystem, base = fsspec.core.url_to_fs(root)
    for name in record.artifacts.values():
        path = folder / Path(name).name
        filesystem.get_file(f"{base.rstrip('/')}/{name}", str(path))
        yield path


def _local(root: str) -> Path | None:
    """Return the result root as an absolute folder, or ``None`` where it is remote."""
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    filesystem, path = fsspec.core.url_to_fs(root)
    return Path(path).resolve() if isinstance(filesystem, LocalFileSystem) else None


def _absolute(environment: Mapping[str, Any]) -> str:
    root = str(environment["results_root"])
    folder = _local(root)
    return root if folder is None else folder.as_posix()


def _name(name: str) -> str:
    """Return the name with the characters that MLflow refuses replaced."""
    return re.sub(r"[^\w\-. /:]", "_", name, flags=re.ASCII)


def _milliseconds(moment: str) -> int:
    return round(datetime.fromisoformat(moment).timestamp() * 1000)


def _now() -> int:
    return round(time.time() * 1000)
