"""The scheduler: gives trials to worker processes, keeps their records, and tells the observers.

It survives whatever a worker does: a worker that dies costs only the trial it was on, and every finished trial's record
is on disk before anything else happens.

What is not here: which trials there are (``plan``), training (``training``), the worker's side (``worker``).
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from harness.errors import HarnessError
from harness.method import attaches
from harness.record import Record, State
from harness.registry import Registry
from harness.store import Store
from harness.trial import Trial

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to run, as opposed to what.

    Attributes:
        workers: Worker processes.
        devices: One per worker, e.g. ``("cuda:0", "cuda:1")`` or ``("cpu", "cpu")``.
        threads: CPU threads per worker; 0: PyTorch's choice.
        pack: Most trials to train together; 0: the worker measures what fits.
        data_dir: Local tables, or ``None``.
        block: Plugins left out.
        trial_seconds: Time limit of one trial; 0: none.
        allow_code_execution: Whether model-written code may run.
        environment: Goes into every record.
    """

    devices: tuple[str, ...]
    threads: int = 0
    pack: int = 0
    data_dir: Path | None = None
    block: tuple[str, ...] = ()
    trial_seconds: float = 0.0
    allow_code_execution: bool = False
    environment: Mapping[str, Any] = field(default_factory=dict)


class Observers:
    """Calls the observing hooks. A failing observer loses nothing and stops nothing; it is counted."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.failures = 0

    def call(self, hook: str, **arguments: Any) -> None:
        """Call every implementation of a hook; an exception is logged with its plugin's name."""
        for implementation in getattr(self.registry.hook, hook).get_hookimpls():
            try:
                implementation.function(*(arguments[name] for name in implementation.argnames))
            except Exception as error:
                self.failures += 1
                logger.warning("plugin %s, %s: %s: %s", implementation.plugin_name, hook, type(error).__name__, error)
                logger.debug("", exc_info=True)


class _Process:
    """One worker process and what it is doing."""

    def __init__(
        self, number: int, settings: Settings, store: Store, events: queue.Queue[tuple[int, dict[str, Any] | None]]
    ) -> None:
        self.number = number
        self.jobs: list[Trial] = []  # given and not yet finished, in order
        self.started: dict[str, float] = {}
        self.idle = False
        environment = dict(os.environ)
        if settings.threads:
            environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(settings.threads)
        environment["PYTORCH_CUDA_ALLOC_CONF"] = environment.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "harness.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environment,
            start_new_session=True,  # Ctrl-C is for the scheduler, which stops its workers in order
        )
        self.last_words: deque[str] = deque(maxlen=40)
        threading.Thread(target=self._read_events, args=(events,), daemon=True).start()
        self._errors = threading.Thread(target=self._read_errors, daemon=True)
        self._errors.start()
        self._send(
            {
                "results": store.root,
                "device": settings.devices[number],
                "threads": settings.threads,
                "data_dir": str(settings.data_dir) if settings.data_dir else None,
                "block": list(settings.block),
                "environment": dict(settings.environment),
                "allow_code_execution": settings.allow_code_execution,
            }
        )

    def give(self, trials: Sequence[Trial], pack: int) -> None:
        """Give the worker a job."""
        self.jobs, self.idle = list(trials), False
        self._send({"trials": [trial.to_json() for trial in trials], "pack": pack})

    def kill(self) -> None:
        """End the process at once, with whatever it started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()

    def why(self) -> str:
        """Return how the process ended and the last lines it printed."""
        code = self.process.wait()
        self._errors.join(timeout=5)
        end = f"exit code {code}" if code >= 0 else f"signal {-code} ({signal.Signals(-code).name})"
        return f"the worker process ended with {end}\n" + "".join(self.last_words)

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # its death is reported by the reader of its events

    def _read_events(self, events: queue.Queue[tuple[int, dict[str, Any] | None]]) -> None:
        for line in self._stream(self.process.stdout):
            events.put((self.number, json.loads(line)))
        events.put((self.number, None))

    def _read_errors(self) -> None:
        for line in self._stream(self.process.stderr):
            self.last_words.append(line)
            logger.debug("worker %d: %s", self.number, line.rstrip())

    @staticmethod
    def _stream(stream: IO[str] | None) -> IO[str]:
        assert stream is not None
        return stream


class Scheduler:
    """Runs trials.

    Args:
        registry: For the observers and the tasks' metric names.
        store: Where records go.
        settings: How to run.
        watch: Told of every event, for the progress display: ``watch(event, trial, payload)``.
    """

    def __init__(
        self,
        registry: Registry,
        store: Store,
        settings: Settings,
        watch: Callable[[str, Trial, Mapping[str, Any]], None],
    ) -> None:
        self.registry, self.store, self.settings, self.watch = registry, store, settings, watch
        self.observers = Observers(registry)
        self._events: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        self._workers: dict[int, _Process] = {}
        self._waiting: deque[tuple[list[Trial], int]] = deque()

    def run(self, trials: Sequence[Trial]) -> None:
        """Run trials to their records. May be called again; workers stay, with their base model.

        Raises:
            KeyboardInterrupt: After the running trials got records that say so.
        """
        self._waiting.extend(jobs(trials, self.registry, len(self.settings.devices), self.settings.pack))
        try:
            while self._waiting or any(worker.jobs for worker in self._workers.values()):
                self._dispatch()
                self._handle(self._next_event())
                self._enforce_limits()
        except BaseException as error:
            self._stop("interrupted" if isinstance(error, KeyboardInterrupt) else str(error))
            raise

    def close(self) -> None:
        """End the workers, and let the observers finish."""
        for worker in self._workers.values():
            worker.kill()
        self._workers.clear()
        self.observers.call("harness_sweep_finished")

    def _dispatch(self) -> None:
        for number in range(len(self.settings.devices)):
            if not self._waiting:
                return
            worker = self._workers.get(number)
            if worker is None:
                self._workers[number] = _Process(number, self.settings, self.store, self._events)
            elif worker.idle:
                worker.give(*self._waiting.popleft())

    def _next_event(self) -> tuple[int, dict[str, Any] | None] | None:
        try:
            return self._events.get(timeout=1.0)
        except queue.Empty:
            return None

    def _handle(self, item: tuple[int, dict[str, Any] | None] | None) -> None:
        if item is None:
            return
        number, event = item
        worker = self._workers.get(number)
        if worker is None:
            return
        if event is None:
            self._died(number, worker)
        elif event["event"] == "idle":
            worker.idle = True
        elif event["event"] == "record":
            self._keep(Record.from_json(event["record"]))
            worker.jobs = [trial for trial in worker.jobs if trial.id != event["record"]["trial_id"]]
        else:
            trial = next((each for each in worker.jobs if each.id == event["trial"]), None)
            if trial is None:
                return
            if event["event"] == "started":
                worker.started[trial.id] = time.monotonic()
                self.observers.call("harness_trial_started", trial=trial, environment=self.settings.environment)
            else:
                self.observers.call("harness_trial_progress", trial=trial, step=event["step"], metrics=event["metrics"])
            self.watch(event["event"], trial, event)

    def _keep(self, record: Record) -> None:
        """Put a record on disk, then tell everyone."""
        self.store.write(record)
        self.observers.call("harness_trial_finished", trial=record.trial, record=record)
        self.watch("finished", record.trial, {"record": record})

    def _died(self, number: int, worker: _Process) -> None:
        """A worker is gone: blame the trial it was on, and give the others to a new worker."""
        why = worker.why()
        del self._workers[number]
        running = [trial for trial in worker.jobs if trial.id in worker.started]
        rest = [trial for trial in worker.jobs if trial.id not in worker.started]
        if not worker.jobs and not worker.idle:
            raise HarnessError(f"a worker cannot start: {why}")
        if len(running) > 1:  # a pack: which of them it was shows when each runs alone
            self._waiting.extendleft([([trial], 1) for trial in running])
        elif running:
            state = State.OUT_OF_MEMORY if "SIGKILL" in why else State.FAILED
            self._keep(self._ended(running[0], state, "WorkerDied", why))
        elif rest:  # it died between trials: the next one is to blame if it happens again
            first, rest = rest[0], rest[1:]
            self._keep(self._ended(first, State.FAILED, "WorkerDied", why))
        if rest:
            self._waiting.appendleft((rest, self.settings.pack or 1))

    def _enforce_limits(self) -> None:
        limit = self.settings.trial_seconds
        for worker in list(self._workers.values()):
            late = [
                t
                for t in worker.jobs
                if limit and time.monotonic() - worker.started.get(t.id, time.monotonic()) > limit
            ]
            if late:
                worker.kill()
                del self._workers[worker.number]
                for trial in late:
                    self._keep(self._ended(trial, State.TIMED_OUT, "TimedOut", f"ran longer than {limit:g} seconds"))
                rest = [trial for trial in worker.jobs if trial not in late]
                if rest:
                    self._waiting.appendleft((rest, self.settings.pack or 1))

    def _stop(self, why: str) -> None:
        """End every worker; trials that were running get a record that says so."""
        for worker in self._workers.values():
            worker.kill()
            for trial in worker.jobs:
                if trial.id in worker.started and self.store.read(trial.id) is None:
                    self._keep(self._ended(trial, State.INTERRUPTED, "Interrupted", why))
        self._workers.clear()

    def _ended(self, trial: Trial, state: State, kind: str, message: str) -> Record:
        """Return the record of a trial whose worker cannot write it."""
        task = self.registry.task(trial.task)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return Record(
            trial=trial,
            state=state,
            metrics=dict.fromkeys(task.metrics),
            reasons={name: f"{state}: {message.splitlines()[0]}" for name in task.metrics},
            main_metric=task.main_metric,
            higher_is_better=task.metrics[task.main_metric].higher_is_better,
            environment=self.settings.environment,
            error={"type": kind, "message": message.splitlines()[0], "traceback": message, "step": None},
            started_at=now,
            finished_at=now,
        )


def jobs(trials: Sequence[Trial], registry: Registry, workers: int, pack: int) -> list[tuple[list[Trial], int]]:
    """Return jobs for workers: trials that may share a pack stay together, and every worker gets its share.

    Args:
        trials: What is to run.
        registry: Knows which methods cannot be packed.
        workers: How many jobs can run side by side.
        pack: Most trials in a pack; 0: the worker decides.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        alone = attaches(registry.method(trial.method))
        content = {name: value for name, value in trial.to_json().items() if name in _SHARED}
        groups.setdefault(trial.id if alone else json.dumps(content, sort_keys=True), []).append(trial)
    result: list[tuple[list[Trial], int]] = []
    for group in groups.values():
        size = pack or max(1, -(-len(group) // workers))
        # Alike trials beside each other, so that they are stacked.
        group.sort(key=lambda trial: (trial.method, json.dumps(trial.to_json()["config"], sort_keys=True)))
        result += [(group[start : start + size], pack) for start in range(0, len(group), size)]
    return result


_SHARED = frozenset({"task", "scale", "recipe", "model", "model_revision", "targets", "precision", "data"})
