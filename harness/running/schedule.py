"""The scheduler: gives trials to worker processes, keeps their records, and tells the observers.

It survives whatever a worker does: a worker that dies costs at most a try of the trial it was on, one that dies
while it starts is replaced, and every finished trial's record is on disk before anything else happens.

What is not here: which trials there are (``planning.plan``), training (``engine.training``), where workers run
(``contract.executor``, ``local``), what they do (``worker``), and what is written down of a trial (``recording``).
"""

from __future__ import annotations

import logging
import os
import queue
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from harness.contract.executor import Executor
from harness.contract.record import Record, State
from harness.contract.trial import Trial
from harness.errors import HarnessError, RecordError
from harness.planning.published import Published
from harness.planning.registry import Registry
from harness.planning.retry import Retry
from harness.results.claims import Claims
from harness.results.store import Store
from harness.running.checkpoints import forget
from harness.running.crew import Member
from harness.running.leaving import take
from harness.running.observers import Observers
from harness.running.pieces import Pieces
from harness.running.recording import lost
from harness.running.redaction import redact

logger = logging.getLogger(__name__)

LOOK_SECONDS = 2.0  # between looks at what others are training
MOST_LOOKS = 50  # trials at a look
MOST_MOVES = 3  # of a trial whose machine was lost: it may be what ends machines
START_TRIES = 3  # a worker that dies while it starts is replaced, until as many in a row have
SAVE_SECONDS = 1.25  # that workers have to save what they train after Ctrl-C
LEAVE_SECONDS = 20.0  # and when a machine is about to go
TELL_SECONDS = 0.75  # that observers have then, all together: what they miss can be made again from the records
REST_SECONDS = 1.25  # for that, and for records and claims
MAKE_ROOM = "Make room, then run the same command again: finished trials are kept."


Event = tuple[Member, Mapping[str, Any]]  # what a worker said


class Terminated(KeyboardInterrupt):
    """The process was asked to leave, as a machine does that is about to go: there is time to save."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to run, as opposed to what.

    Attributes:
        executor: Where workers run.
        devices: One per worker, e.g. ``("cuda:0", "cuda:1")`` or ``("cpu", "cpu")``, as they are called where it runs.
        ranks: The devices over which each worker divides a base model, its own first; empty: it has one.
        threads: CPU threads per worker; 0: PyTorch's choice.
        pack: Most trials to train together; 0: the worker measures what fits.
        compiled: Whether to compile the model's repeated block: ``auto``, ``on`` or ``off``.
        recomputes: Whether the backward pass computes activations again instead of keeping them.
        data_dir: Local tables, or ``None``.
        block: Plugins left out.
        trial_seconds: Time limit of one trial; 0: none.
        checkpoint_seconds: How often trials in training are saved.
        allow_code_execution: Whether model-written code may run.
        environment: Goes into every record.
        published: What the suite says of a paper; each record gets what belongs beside it.
        retry: Which records leave nothing to do.
    """

    executor: Executor
    devices: tuple[str, ...]
    ranks: tuple[tuple[str, ...], ...] = ()
    threads: int = 0
    pack: int = 0
    compiled: str = "auto"
    recomputes: bool = False
    data_dir: Path | None = None
    block: tuple[str, ...] = ()
    trial_seconds: float = 0.0
    checkpoint_seconds: float = 60.0
    allow_code_execution: bool = False
    environment: Mapping[str, Any] = field(default_factory=dict)
    published: Published = field(default_factory=Published)
    retry: Retry = field(default_factory=Retry)


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
        self._events: queue.Queue[Event] = queue.Queue()
        self._workers: dict[int, Member] = {}
        self._pieces = Pieces(registry, len(settings.devices), settings.pack)
        self._elsewhere: deque[Trial] = deque()  # somebody else is training them
        self._next_look = 0.0
        self.claims = Claims(store)
        self._moves: Counter[str] = Counter()  # by trial: how often its machine was lost
        self._failed_starts = 0

    def start(self) -> None:
        """Start a first worker, so that it loads its libraries while others still plan. Not needed before ``run``."""
        if self.settings.executor.starts_early:
            self._start(0)

    def run(self, trials: Sequence[Trial]) -> None:
        """Run trials to their records. May be called again; workers stay, with their base model.

        Raises:
            KeyboardInterrupt: After the running trials got records that say so.
        """
        self._pieces.add(trials)
        try:
            while self._pieces or self._elsewhere or any(worker.jobs for worker in self._workers.values()):
                self._look_elsewhere()
                self._dispatch()
                self._handle(self._next_event())
                self._enforce_limits()
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt)
            seconds = LEAVE_SECONDS if isinstance(error, Terminated) else SAVE_SECONDS
            self._stop("the run was stopped" if stopped else str(error), seconds)
            raise

    def close(self) -> None:
        """End the workers, and let the observers finish."""
        for member in self._workers.values():
            member.worker.kill()
        self._workers.clear()
        self.settings.executor.close()
        self.claims.close()
        self.observers.call("harness_sweep_finished")

    def _start(self, number: int) -> None:
        member = Member(number, self.settings.executor, self._setup(number), self._hear)
        self._workers[number] = member

    def _hear(self, member: Member, event: Mapping[str, Any]) -> None:
        self._events.put((member, event))

    def _setup(self, number: int) -> dict[str, Any]:
        """Return what a worker is told first."""
        settings = self.settings
        return {
            "folder": os.getcwd(),  # noqa: PTH109  where relative paths begin, as the user wrote them
            "results": self.store.root,
            "device": settings.devices[number],
            "ranks": list(settings.ranks[number]) if settings.ranks else [],
            "threads": settings.threads,
            "data_dir": str(settings.data_dir) if settings.data_dir else None,
            "block": list(settings.block),
            "environment": dict(settings.environment),
            "allow_code_execution": settings.allow_code_execution,
            "compiled": settings.compiled,
            "checkpoint_seconds": settings.checkpoint_seconds,
            "recomputes": settings.recomputes,
        }

    def _dispatch(self) -> None:
        for number in range(len(self.settings.devices)):
            member = self._workers.get(number)
            if member is None:
                coming = sum(not each.jobs for each in self._workers.values())
                if coming < self._pieces.pieces_left():
                    self._start(number)
            elif member.idle:
                while self._pieces and not member.jobs:
                    trials, pack = self._pieces.next(number)
                    if todo := self._claimed(trials):
                        member.give(todo, pack)
                if member.has_waited(self.settings.executor.idle_seconds):
                    del self._workers[number]
                    member.worker.kill()

    def _claimed(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return the trials that are ours to train. Others are answered already, or somebody else is at them."""
        ours = self.claims.take([trial.id for trial in trials])
        for trial in trials:
            if trial.id not in ours:
                self._elsewhere.append(trial)
                self._pieces.taken_elsewhere(trial)
        return [trial for trial in trials if trial.id in ours and not self._is_there(trial)]

    def _look_elsewhere(self) -> None:
        """See what became of some of the trials that others were at: answered, or given up with their owner's death."""
        now = time.monotonic()
        if not self._elsewhere or now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        some = [self._elsewhere.popleft() for _ in range(min(MOST_LOOKS, len(self._elsewhere)))]
        left = [trial for trial in some if not self._is_there(trial)]
        free = self.claims.take([trial.id for trial in left])
        self._pieces.add([trial for trial in left if trial.id in free])
        self._elsewhere.extend(trial for trial in left if trial.id not in free)

    def _is_there(self, trial: Trial) -> bool:
        """Return whether another run, which shares the result root, finished this trial meanwhile; if so, show it."""
        record = self.store.read(trial.id)
        if record is None or not self.settings.retry.settles(record):
            return False
        self.claims.release(trial.id)
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
        member, event = item
        if self._workers.get(member.number) is not member:
            return  # last words of one that was ended for running too long
        if event["event"] == "ended":
            self._died(member, event)
        elif event["event"] == "idle":
            member.waits()
            self._failed_starts = 0
            member.environment = event.get("environment", member.environment)
            for trial in list(member.jobs.values()):
                why = "the worker ended its job without a record"
                self._keep(self._ended(member, trial, State.FAILED, "NoRecord", why))
                member.done(trial.id)
        elif event["event"] == "stop":
            raise HarnessError(f"{event['why']}. {MAKE_ROOM}")
        elif event["event"] == "warning":
            logging.getLogger(event["logger"]).warning("%s", event["message"])
        elif event["event"] == "record":
            self._keep(Record.from_json(event["record"]))
            member.done(event["record"]["trial_id"])
        elif event["trial"] in member.jobs:
            self._show(member, member.jobs[event["trial"]], event)

    def _show(self, member: Member, trial: Trial, event: Mapping[str, Any]) -> None:
        """Tell everyone that a trial has started or come further."""
        if event["event"] == "started":
            member.started[trial.id] = time.monotonic()
            self.observers.call("harness_trial_started", trial=trial, environment=self.settings.environment)
        else:
            self.observers.call("harness_trial_progress", trial=trial, step=event["step"], metrics=event["metrics"])
        self.watch(event["event"], trial, event)

    def _keep(self, record: Record) -> None:
        """Put a record on disk, then tell everyone."""
        self._tell(self._write(record))

    def _write(self, record: Record) -> Record:
        """Put a record on disk, and return the one that is there."""
        published, trial = self.settings.published, record.trial
        record = replace(record, published=published.beside(trial), paper_recipe=published.recipes.get(trial.task, {}))
        if not record.state.is_final:
            record = replace(record, error={**(record.error or {}), "conditions": self.settings.retry.conditions})
        record = replace(
            record, **{name: redact(getattr(record, name)) for name in ("environment", "error", "reasons")}
        )
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
        if record.state.is_final or record.state is State.FAILED:  # a failed one may owe it to its state
            forget(self.store, record.trial_id)
        self.claims.release(record.trial_id)
        return record

    def _tell(self, record: Record) -> None:
        self.observers.call("harness_trial_finished", trial=record.trial, record=record)
        self.watch("finished", record.trial, {"record": record})

    def _died(self, member: Member, event: Mapping[str, Any]) -> None:
        """A worker is gone: blame the trial it was on, and give the others to a new worker."""
        why, state, machine_lost = str(event["why"]), State(event["state"]), event.get("machine_lost", False)
        del self._workers[member.number]
        if not member.ready and not machine_lost:
            self._failed_starts += 1
            if self._failed_starts == START_TRIES:
                raise HarnessError(f"a worker cannot start, tried {START_TRIES} times: {why}")
            logger.warning("a worker died while it started, and is replaced: %s", why.splitlines()[0])
            return
        running = [trial for trial in member.jobs.values() if trial.id in member.started]
        rest = [trial for trial in member.jobs.values() if trial.id not in member.started]
        if machine_lost:
            logger.warning("worker %d is gone, and another takes its trials: %s", member.number, why.splitlines()[0])
            self._moves.update(trial.id for trial in running)
            running, moved = [], running
            for trial in moved:
                (running if self._moves[trial.id] > MOST_MOVES else rest).append(trial)
        elif not running:  # it died between trials: the next one is to blame
            running, rest = rest[:1], rest[1:]
        if rest:
            self._pieces.put_back(rest)
        if len(running) > 1:  # a pack: which of them it was shows when each runs alone
            self._pieces.add_alone(running)
        elif running:
            self._keep(self._ended(member, running[0], state, "WorkerDied", why))

    def _enforce_limits(self) -> None:
        limit = self.settings.trial_seconds
        if not limit:
            return
        now = time.monotonic()
        for number, member in list(self._workers.items()):
            late = [trial_id for trial_id, begin in member.started.items() if now - begin > limit]
            if late:
                member.worker.kill()
                del self._workers[number]
                if rest := [trial for trial in member.jobs.values() if trial.id not in late]:
                    self._pieces.put_back(rest)
                for trial in (member.jobs[trial_id] for trial_id in late):
                    why = f"ran longer than {limit:g} seconds"
                    self._keep(self._ended(member, trial, State.TIMED_OUT, "TimedOut", why))

    def _stop(self, why: str, seconds: float) -> None:
        """End every worker. What they had already sent is kept; trials that were running get a record that says so.

        Args:
            why: For these records.
            seconds: That the workers have to save what they train.
        """
        take(seconds + REST_SECONDS)
        for member in self._workers.values():
            member.worker.stop() if member.started else member.worker.kill()
        end: float | None = time.monotonic() + seconds
        last: list[Record] = []
        while self._workers:
            try:
                sender, event = self._events.get(timeout=None if end is None else max(0.0, end - time.monotonic()))
            except queue.Empty:
                for member in self._workers.values():
                    member.worker.kill()
                end = None  # each of them says that it is gone
                continue
            if event["event"] == "record":
                last.append(Record.from_json(event["record"]))
                sender.done(event["record"]["trial_id"])
            elif event["event"] == "ended" and self._workers.get(sender.number) is sender:
                del self._workers[sender.number]
                for trial in sender.jobs.values():
                    if trial.id in sender.started:
                        last.append(self._ended(sender, trial, State.INTERRUPTED, "Interrupted", why))
        self.observers.hurry(TELL_SECONDS)
        for record in [self._write(record) for record in last]:  # all are safe before anybody is told of one
            self._tell(record)
        self._pieces.clear()
        self._elsewhere.clear()

    def _ended(self, member: Member, trial: Trial, state: State, kind: str, message: str) -> Record:
        """Return the record of a trial whose worker cannot write it."""
        seconds = time.monotonic() - member.started.get(trial.id, time.monotonic())
        started = (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds")
        task = self.registry.task(trial.task)
        return lost(trial, task, member.environment, started, state, kind, message)
