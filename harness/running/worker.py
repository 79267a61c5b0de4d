"""What a worker runs next: how many trials train together, compiled or not, and each alone after a failed pack.

What is not here: what stays in memory (``engine.shared``), training (``engine.training``), what is written down
(``recording``), the process around it all (``serve``).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from harness.contract.method import Method
from harness.contract.record import Record
from harness.contract.task import Task
from harness.contract.trial import Trial
from harness.engine.cost import MOST_LANES, SoloCost, lanes_that_fit, lanes_that_pay
from harness.engine.lane import Lane
from harness.engine.memory import let_go, release
from harness.engine.pack import foresee
from harness.engine.shared import Shared
from harness.engine.training import train
from harness.errors import ChangedBaseError, TrialError
from harness.planning.registry import Registry
from harness.running.checkpoints import Checkpoints
from harness.running.devices import fault_of
from harness.running.readings import Readings
from harness.running.recording import Recording, now, only_finite

logger = logging.getLogger(__name__)

Emit = Callable[[Mapping[str, Any]], None]


class DeviceLost(BaseException):
    """This process can use its device no more. Like ``KeyboardInterrupt``, no trial's error.

    Args:
        fault: What is wrong with it.
        is_recorded: Whether the trial that it happened to has its record; else one of a pack's is to blame.
    """

    def __init__(self, fault: str, is_recorded: bool) -> None:
        super().__init__(fault)
        self.is_recorded = is_recorded


class Worker:
    """Trains the trials it is given, and emits what happens to them.

    Args:
        registry: Finds methods and tasks.
        shared: Base model and data.
        recording: Makes the records.
        emit: Sends an event to the scheduler.
        compiled: Whether to compile the model's repeated block: ``auto``, ``on`` or ``off``.
        checkpoints: Keeps trials that are being trained; ``None``: nobody does.
    """

    def __init__(
        self, registry: Registry, shared: Shared, recording: Recording, emit: Emit, compiled: str = "off",
        checkpoints: Checkpoints | None = None,
    ) -> None:  # fmt: skip
        self.registry, self.shared, self.recording = registry, shared, recording
        self.emit, self.compiled, self.checkpoints = emit, compiled, checkpoints
        self.readings = Readings(shared.device)

    def run(self, trials: Sequence[Trial], pack: int) -> None:
        """Train trials that may share a base, and emit a record for each.

        Args:
            trials: Alike ones beside each other.
            pack: Most to train at once; 0: as many as fill the device, and fit into its memory.
        """
        begin = 0
        while begin < len(trials):
            end = begin + (pack or self._pack_size(trials[begin : begin + MOST_LANES]))
            self._run_together(trials[begin:end])
            begin = end

    def _run_together(self, trials: Sequence[Trial]) -> None:
        events = _Events(self, now())
        lanes: list[Lane] = []
        later: list[Trial] = []
        for trial in trials:
            self.emit({"event": "started", "trial": trial.id})
            begin = time.perf_counter()
            try:
                self._check_code(trial)
                self._solo_cost(trial)
                lane = self.shared.lane(trial, *self._code(trial))
                self.check_base([trial])
            except Exception as error:  # noqa: BLE001 - a trial that cannot start is a result, the others go on
                if lanes and isinstance(error, torch.OutOfMemoryError):  # which it may have when they are done
                    logger.warning(
                        "%s: no memory for it beside %d others; it trains after them", trial.label, len(lanes)
                    )
                    let_go(error)
                    later.append(trial)
                    continue
                events.failed(trial, error)
                if isinstance(error, ChangedBaseError) or self._has_left_the_base_changed():
                    del lanes[:]  # they were made over it
                    let_go(error)
                    self._run_together([each for each in trials if each.id not in events.done])
                    return
                continue
            lane.prepare_seconds = time.perf_counter() - begin
            if self.checkpoints is not None:
                self.checkpoints.restore(lane)
            lanes.append(lane)
        if not lanes:
            return
        del lane
        for trial in [*self._again_alone(lanes, events), *later]:
            del lanes[:]  # these are gone before the next one starts
            release(self.shared.device)
            self._run_together([trial])

    def _again_alone(self, lanes: Sequence[Lane], events: _Events) -> list[Trial]:
        """Train lanes together; return the trials to run again alone, which shows whose fault a pack's failure was."""
        try:
            if self.checkpoints is not None:
                self.checkpoints.begin()
            events.together = [lane.trial for lane in lanes]
            train(lanes[0].base, lanes, events, self._pays_to_compile(lanes), self.checkpoints)
        except Exception as error:
            unfinished = [lane for lane in lanes if lane.trial.id not in events.done]
            self._has_left_the_base_changed()  # then what comes next has another
            lanes[0].base.clear()
            lanes[0].base.forget()
            let_go(error)
            if len(unfinished) != 1:
                logger.warning("a pack of %d trials failed, each is run again alone: %s", len(lanes), error)
                logger.debug("", exc_info=True)
                if fault := fault_of(self.shared.device):
                    raise DeviceLost(fault, is_recorded=not unfinished) from error
                return [lane.trial for lane in unfinished]
            if unfinished[0].error is None or isinstance(error, ChangedBaseError):  # else what came first says why
                unfinished[0].error = error
            events.ended(unfinished[0])
        return []

    def _has_left_the_base_changed(self) -> bool:
        """Return whether what failed wrote to the base model, which is not kept then."""
        try:
            return bool(self.shared.changed())
        except RuntimeError:  # the device failed, which whatever comes next will find out
            return False

    def check_base(self, trials: Sequence[Trial]) -> None:
        """Refuse to go on with a base model that one of the trials which train over it wrote to.

        Raises:
            ChangedBaseError: The base is not the pretrained one any more. The next trial loads it anew.
        """
        if name := self.shared.changed():
            methods = ", ".join(dict.fromkeys(trial.method for trial in trials))
            raise ChangedBaseError(
                f"the pretrained weight {name} was changed (by method {methods}), which would falsify every trial that "
                "trains over it; write what a method changes as a correction of base_output, or override attach(), "
                f"which has a model of its own (`harness check {trials[0].method}`)"
            )

    def _code(self, trial: Trial) -> tuple[type[Method], Task]:
        return self.registry.method(trial.method), self.registry.task(trial.task)()

    def _check_code(self, trial: Trial) -> None:
        """Refuse a trial whose method or task was edited since it was planned: its id stands for the other source."""
        for kind, name in (("method", trial.method), ("task", trial.task)):
            identity = self.registry.origin(kind, name).identity
            if trial.plugins.get(kind, identity) != identity:
                raise TrialError(
                    f"{kind} {name!r} was edited while the run went on (planned with {trial.plugins[kind]}, "
                    f"here it is {identity}); run the same command again"
                )

    def _solo_cost(self, trial: Trial) -> SoloCost:
        return self.shared.solo_cost(trial, *self._code(trial))

    def _pack_size(self, trials: Sequence[Trial]) -> int:
        """Return how many of the first trials to train together: as many as fill the device, and fit into it."""
        if self.shared.device.type != "cuda":
            return 1
        try:
            base = self.shared.base(trials[0], self._code(trials[0])[1])
            costs = []
            for trial in trials:
                costs.append(self._solo_cost(trial))
                self.check_base([trial])
        except Exception:  # noqa: BLE001 - which trial it was, and why, is recorded when it runs alone
            return 1
        sizes = [cost.lane_bytes for cost in costs if cost.lane_bytes is not None]
        if len(sizes) != len(costs):
            return 1
        return min(lanes_that_fit(base, max(sizes)), max(lanes_that_pay(cost.step_flops) for cost in costs))

    def _pays_to_compile(self, lanes: Sequence[Lane]) -> bool:
        """Return whether compiling the model's block saves more time than it takes.

        It takes about 15 seconds per method and form of batch, and saves about a third of a step (docs/performance.md).
        """
        if self.compiled != "auto":
            return self.compiled == "on"
        seconds = sum((self._solo_cost(lane.trial).step_seconds or 0.0) * lane.steps for lane in lanes)
        kinds = len({(lane.trial.method, json.dumps(lane.trial.to_json()["config"])) for lane in lanes})
        forms = len(foresee(lanes[0].base, lanes)[1].sizes)
        return self.shared.device.type == "cuda" and 0.3 * seconds > 15 * kinds * forms


class _Events:
    """Turns what becomes of trials that started together into events for the scheduler."""

    def __init__(self, worker: Worker, started: str) -> None:
        self.worker, self.started = worker, started
        self.done: set[str] = set()
        self.together: Sequence[Trial] = ()

    def progress(self, lane: Lane, step: int, metrics: Mapping[str, float]) -> None:
        """Send metrics on."""
        self.worker.emit(
            {
                "event": "progress",
                "trial": lane.trial.id,
                "step": step,
                "steps": lane.steps,
                "metrics": {**only_finite(metrics), **self.worker.readings.now()},
            }
        )

    def finished(self, lane: Lane) -> None:
        """Send the record of a trial that trained to its end, or stopped.

        Raises:
            ChangedBaseError: What it was trained and scored over is not the pretrained model.
        """
        self.worker.check_base(self.together)
        self.ended(lane)

    def ended(self, lane: Lane) -> None:
        """Send the record."""
        trial, worker = lane.trial, self.worker
        self.done.add(trial.id)
        try:
            task = worker.registry.task(trial.task)
            record = worker.recording.ended(lane, task, worker._solo_cost(trial), self.started)
            self._tell(record)
        except OSError as error:  # of the place for results, not of the trial
            worker.emit({"event": "stop", "why": f"the adapter of {trial.label} cannot be written: {error}"})
        except Exception as error:  # noqa: BLE001 - a record that cannot be made is that trial's result
            self.failed(trial, error)

    def failed(self, trial: Trial, error: BaseException) -> None:
        """Send the record of a trial that has nothing but an error."""
        self.done.add(trial.id)
        self._tell(self.worker.recording.failed(trial, self.worker.registry.task(trial.task), error, self.started))

    def _tell(self, record: Record) -> None:
        self.worker.emit({"event": "record", "record": record.to_json()})
        if not record.state.is_final and (fault := fault_of(self.worker.shared.device)):
            raise DeviceLost(fault, is_recorded=True)
