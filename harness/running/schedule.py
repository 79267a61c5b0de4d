"""The scheduler: gives trials to worker processes, keeps their records, and tells the observers.

It survives whatever a worker does: a worker that dies costs at most a try of the trial it was on, one that dies
while it starts is replaced, and every finished trial's record is on disk before anything else happens.

What is not here: which trials there are (``planning.plan``), training (``engine.training``), a worker's process
(``process``), what it does (``worker``), and what is written down of a trial (``recording``).
"""

from __future__ import annotations

import json
import logging
import queue
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from harness.contract.method import attaches
from harness.contract.record import Record, State
from harness.contract.trial import Trial
from harness.errors import HarnessError, RecordError
from harness.planning.published import Published
from harness.planning.registry import Registry
from harness.planning.retry import Retry
from harness.results.store import Store
from harness.running.kernel import MemoryKills
from harness.running.process import Event, WorkerProcess, launch
from harness.running.recording import lost

logger = logging.getLogger(__name__)

START_TRIES = 3  # a worker that dies while it starts is replaced, until as many in a row have
MAKE_ROOM = "Make room, then run the same command again: finished trials are kept."


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to run, as opposed to what.

    Attributes:
        devices: One per worker, e.g. ``("cuda:0", "cuda:1")`` or ``("cpu", "cpu")``.
        threads: CPU threads per worker; 0: PyTorch's choice.
        pack: Most trials to train together; 0: the worker measures what fits.
        compiled: Whether to compile the model's repeated block: ``auto``, ``on`` or ``off``.
        recomputes: Whether the backward pass computes activations again instead of keeping them.
        data_dir: Local tables, or ``None``.
        block: Plugins left out.
        trial_seconds: Time limit of one trial; 0: none.
        allow_code_execution: Whether model-written code may run.
        environment: Goes into every record.
        published: What the suite says of a paper; each record gets what belongs beside it.
        retry: Which records leave nothing to do.
    """

    devices: tuple[str, ...]
    threads: int = 0
    pack: int = 0
    compiled: str = "auto"
    recomputes: bool = False
    data_dir: Path | None = None
    block: tuple[str, ...] = ()
    trial_seconds: float = 0.0
    allow_code_execution: bool = False
    environment: Mapping[str, Any] = field(default_factory=dict)
    published: Published = field(default_factory=Published)
    retry: Retry = field(default_factory=Retry)


class Observers:
    """Calls the observing hooks. A failing observer loses nothing and stops nothing; it is counted."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.failures = 0

    def call(self, hook: str, **arguments: Any) -> list[Any]:
        """Call every implementation of a hook and return the results; an exception is logged with its plugin's name."""
        results: list[Any] = []
        for implementation in getattr(self.registry.hook, hook).get_hookimpls():
            try:
                results.append(implementation.function(*(arguments[name] for name in implementation.argnames)))
            except Exception as error:
                self.failures += 1
                logger.warning("plugin %s, %s: %s: %s", implementation.plugin_name, hook, type(error).__name__, error)
                logger.debug("", exc_info=True)
        return results


class Scheduler:
    """Runs trials.

    Args:
        registry: For the observers and the tasks' metric names.
        store: Where records go.
        settings: How to run.
        watch: Told of every event, for the progress display: ``watch(event, trial, payload)``.
        launched: The first worker's process, if it was launched earlier.
    """

    def __init__(
        self,
        registry: Registry,
        store: Store,
        settings: Settings,
        watch: Callable[[str, Trial, Mapping[str, Any]], None],
        launched: subprocess.Popen[str] | None = None,
    ) -> None:
        self.registry, self.store, self.settings, self.watch = registry, store, settings, watch
        self._launched = launched
        self.observers = Observers(registry)
        self._events: queue.Queue[Event] = queue.Queue()
        self._workers: dict[int, WorkerProcess] = {}
        self._waiting: deque[tuple[list[Trial], int]] = deque()
        self._memory_kills = MemoryKills()
        self._failed_starts = 0

    def start(self) -> None:
        """Start a first worker, so that it loads its libraries while others still plan. Not needed before ``run``."""
        self._start(0)

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
            self._stop("the run was stopped" if isinstance(error, KeyboardInterrupt) else str(error))
            raise

    def close(self) -> None:
        """End the workers, and let the observers finish."""
        for worker in self._workers.values():
            worker.kill()
        self._workers.clear()
        self.observers.call("harness_sweep_finished")

    def _start(self, number: int) -> None:
        process, self._launched = self._launched or launch(), None
        self._workers[number] = WorkerProcess(number, process, self._setup(number), self._events)

    def _setup(self, number: int) -> dict[str, Any]:
        """Return what a worker is told first."""
        settings = self.settings
        return {
            "results": self.store.root,
            "device": settings.devices[number],
            "threads": settings.threads,
            "data_dir": str(settings.data_dir) if settings.data_dir else None,
            "block": list(settings.block),
            "environment": dict(settings.environment),
            "allow_code_execution": settings.allow_code_execution,
            "compiled": settings.compiled,
            "recomputes": settings.recomputes,
        }

    def _dispatch(self) -> None:
        for number in range(len(self.settings.devices)):
            worker = self._workers.get(number)
            if worker is None:
                coming = sum(not each.jobs for each in self._workers.values())
                if coming < len(self._waiting):
                    self._start(number)
            elif worker.idle:
                while self._waiting and not worker.jobs:
                    trials, pack = self._waiting.popleft()
                    if todo := [trial for trial in trials if not self._is_there(trial)]:
                        worker.give(todo, pack)

    def _is_there(self, trial: Trial) -> bool:
        """Return whether another run, which shares the result root, finished this trial meanwhile; if so, show it."""
        record = self.store.read(trial.id)
        if record is None or not self.settings.retry.settles(record):
            return False
        self.watch("finished", trial, {"record": record})
        return True

    def _next_event(self) -> Event | None:
        try:
            return self._events.get(timeout=1.0)
        except queue.Empty:
            return None

    def _handle(self, item: Event | None) -> None:
        if item is None:
            return
        worker, event = item
        if self._workers.get(worker.number) is not worker:
            return  # last words of one that was ended for running too long
        if event is None:
            self._died(worker)
        elif event["event"] == "idle":
            worker.ready = worker.idle = True
            self._failed_starts = 0
            worker.environment = event.get("environment", worker.environment)
            for trial in list(worker.jobs.values()):
                why = "the worker ended its job without a record"
                self._keep(self._ended(worker, trial, State.FAILED, "NoRecord", why))
                worker.done(trial.id)
        elif event["event"] == "stop":
            raise HarnessError(f"{event['why']}. {MAKE_ROOM}")
        elif event["event"] == "warning":
            logging.getLogger(event["logger"]).warning("%s", event["message"])
        elif event["event"] == "record":
            self._keep(Record.from_json(event["record"]))
            worker.done(event["record"]["trial_id"])
        elif event["trial"] in worker.jobs:
            self._show(worker, worker.jobs[event["trial"]], event)

    def _show(self, worker: WorkerProcess, trial: Trial, event: Mapping[str, Any]) -> None:
        """Tell everyone that a trial has started or come further."""
        if event["event"] == "started":
            worker.started[trial.id] = time.monotonic()
            self.observers.call("harness_trial_started", trial=trial, environment=self.settings.environment)
        else:
            self.observers.call("harness_trial_progress", trial=trial, step=event["step"], metrics=event["metrics"])
        self.watch(event["event"], trial, event)

    def _keep(self, record: Record) -> None:
        """Put a record on disk, then tell everyone."""
        published, trial = self.settings.published, record.trial
        record = replace(record, published=published.beside(trial), paper_recipe=published.recipes.get(trial.task, {}))
        if not record.state.is_final:
            record = replace(record, error={**(record.error or {}), "conditions": self.settings.retry.conditions})
        try:
            record = self.store.write(record)
        except RecordError:
            there = self.store.read(record.trial_id)
            if there is None:
                raise
            logger.warning("%s: another run finished it first; its record is kept", record.trial.label)
            record = there
        except OSError as error:
            raise HarnessError(
                f"the record of {record.trial.label} cannot be written to {self.store.root}: {error}. {MAKE_ROOM}"
            ) from error
        self.observers.call("harness_trial_finished", trial=record.trial, record=record)
        self.watch("finished", record.trial, {"record": record})

    def _died(self, worker: WorkerProcess) -> None:
        """A worker is gone: blame the trial it was on, and give the others to a new worker."""
        why = worker.why()
        state = State.LOST if worker.process.returncode < 0 else State.FAILED  # whatever exits, does so on purpose
        if worker.was_killed and (memory := self._memory_kills.why(worker.process.pid)):
            why, state = f"{memory}; {why}", State.OUT_OF_MEMORY
        del self._workers[worker.number]
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts == START_TRIES:
                raise HarnessError(f"a worker cannot start, tried {START_TRIES} times: {why}")
            logger.warning("a worker died while it started, and is replaced: %s", why.splitlines()[0])
            return
        running = [trial for trial in worker.jobs.values() if trial.id in worker.started]
        rest = [trial for trial in worker.jobs.values() if trial.id not in worker.started]
        if not running:  # it died between trials: the next one is to blame
            running, rest = rest[:1], rest[1:]
        if rest:
            self._waiting.appendleft((rest, self.settings.pack))
        if len(running) > 1:  # a pack: which of them it was shows when each runs alone
            self._waiting.extendleft([([trial], 1) for trial in reversed(running)])
        elif running:
            self._keep(self._ended(worker, running[0], state, "WorkerDied", why))

    def _enforce_limits(self) -> None:
        limit = self.settings.trial_seconds
        if not limit:
            return
        now = time.monotonic()
        for number, worker in list(self._workers.items()):
            late = [trial_id for trial_id, begin in worker.started.items() if now - begin > limit]
            if late:
                worker.kill()
                del self._workers[number]
                if rest := [trial for trial in worker.jobs.values() if trial.id not in late]:
                    self._waiting.appendleft((rest, self.settings.pack))
                for trial in (worker.jobs[trial_id] for trial_id in late):
                    why = f"ran longer than {limit:g} seconds"
                    self._keep(self._ended(worker, trial, State.TIMED_OUT, "TimedOut", why))

    def _stop(self, why: str) -> None:
        """End every worker. What they had already sent is kept; trials that were running get a record that says so."""
        for worker in self._workers.values():
            worker.kill()
        for worker in list(self._workers.values()):
            while worker.number in self._workers:
                sender, event = self._events.get()
                if event is not None and event["event"] == "record":
                    self._handle((sender, event))
                elif event is None and self._workers.get(sender.number) is sender:
                    del self._workers[sender.number]
                    for trial in sender.jobs.values():
                        if trial.id in sender.started:
                            self._keep(self._ended(sender, trial, State.INTERRUPTED, "Interrupted", why))
        self._waiting.clear()

    def _ended(self, worker: WorkerProcess, trial: Trial, state: State, kind: str, message: str) -> Record:
        """Return the record of a trial whose worker cannot write it."""
        seconds = time.monotonic() - worker.started.get(trial.id, time.monotonic())
        started = (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds")
        task = self.registry.task(trial.task)
        return lost(trial, task, worker.environment, started, state, kind, message)


def jobs(trials: Sequence[Trial], registry: Registry, workers: int, pack: int) -> list[tuple[list[Trial], int]]:
    """Return jobs for workers: trials that may share a pack stay together, and every worker gets its share.

    Args:
        trials: What is to run.
        registry: Knows which methods cannot be packed.
        workers: How many jobs can run side by side.
        pack: Most trials in a pack; 0: the worker decides.
    """
    groups: dict[str, dict[str, list[Trial]]] = {}  # alike trials within those that may share a pack
    for trial in trials:
        alone = attaches(registry.method(trial.method))
        kinds = groups.setdefault(trial.id if alone else _content(trial, _SHARED), {})
        kinds.setdefault(_content(trial, _ALIKE), []).append(trial)
    result: list[tuple[list[Trial], int]] = []
    for kinds in groups.values():
        # Alike trials beside each other, so that they are stacked; otherwise in the order given.
        group = [trial for kind in kinds.values() for trial in kind]
        size = pack or max(1, -(-len(group) // workers))
        result += [(group[start : start + size], pack) for start in range(0, len(group), size)]
    return result


def _content(trial: Trial, names: Sequence[str]) -> str:
    return json.dumps([getattr(trial, name) for name in names], sort_keys=True)


_SHARED = ("task", "scale", "recipe", "model", "model_revision", "targets", "precision", "data")
_ALIKE = ("method", "config")
