"""The worker process: trains the trials it is given, over a base model and data that stay resident.

Speaks JSON lines: jobs on standard input, events on standard output. What libraries print goes to standard error.
"""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO, cast

import torch
from safetensors.torch import save

from harness.contract.record import Record, State
from harness.contract.task import Metric, Task, TaskContext, TaskData
from harness.contract.trial import Trial
from harness.engine.cost import SoloCost, lanes_that_fit, measure_solo
from harness.engine.lane import Lane
from harness.engine.model import ModelChoice, load_model, load_tokenizer
from harness.engine.resident import Base
from harness.engine.training import train
from harness.errors import TrialDivergedError
from harness.planning.registry import Registry, build_registry
from harness.results.store import Store
from harness.running.environment import describe_environment

logger = logging.getLogger(__name__)

Emit = Callable[[Mapping[str, Any]], None]
MOST_LANES = 64  # of a pack: beyond it a GPU is full long since
_COST_KEYS = ("task", "recipe", "model", "model_revision", "method", "config", "layer_settings", "targets", "precision")


class Worker:
    """Keeps the base model and the data of the last job.

    Args:
        registry: Finds methods and tasks.
        store: Where adapters are written.
        device: Where to train.
        data_dir: Local tables, or ``None``.
        environment: Goes into every record.
        emit: Sends an event to the scheduler.
        allow_code_execution: Whether model-written code may run.
        compiled: Whether to compile the model's repeated block: ``auto``, ``on`` or ``off``.
        recomputes: Whether the backward pass computes activations again instead of keeping them.
    """

    def __init__(
        self, registry: Registry, store: Store, device: torch.device, data_dir: Path | None,
        environment: Mapping[str, Any], emit: Emit, allow_code_execution: bool = False, compiled: str = "off",
        recomputes: bool = False,
    ) -> None:  # fmt: skip
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # for whatever code does not say which GPU it means
        self.registry, self.store, self.device, self.data_dir = registry, store, device, data_dir
        self.environment = {**environment, **describe_environment(device)}
        self.emit, self.allow_code_execution, self.compiled = emit, allow_code_execution, compiled
        self.recomputes = recomputes
        self._costs: dict[str, SoloCost] = {}
        self._base: tuple[tuple[Any, ...], Base, Any] | None = None
        self._data: dict[tuple[Any, ...], TaskData] = {}

    def run(self, trials: Sequence[Trial], pack: int) -> None:
        """Train trials that may share a base, and emit a record for each.

        Args:
            trials: Alike ones beside each other.
            pack: Most to train at once; 0: as many as fit into the device's memory.
        """
        waiting = list(trials)
        while waiting:
            size = pack or self._pack_size(waiting)
            group, waiting = waiting[:size], waiting[size:]
            self._run_together(group)

    def _run_together(self, trials: Sequence[Trial]) -> None:
        started = _now()
        lanes: list[Lane] = []
        for trial in trials:
            self.emit({"event": "started", "trial": trial.id})
            begin = time.perf_counter()
            try:
                self._solo_cost(trial)
                lane = self._lane(trial)
            except Exception as error:  # noqa: BLE001 - a trial that cannot start is a result, the others go on
                self._emit_failure(trial, error, started)
                continue
            lane.prepare_seconds = time.perf_counter() - begin
            lanes.append(lane)
        if not lanes:
            return
        watch = _Reporter(self, started)
        try:
            train(lanes[0].base, lanes, watch, self._pays_to_compile(lanes))
        except Exception as error:  # the pack's fault is found by running each alone
            unfinished = [lane for lane in lanes if lane.trial.id not in watch.done]
            lanes[0].base.clear()
            if len(unfinished) == 1:
                unfinished[0].error = error
                watch.finished(unfinished[0])
            else:
                logger.warning("a pack of %d trials failed, each is run again alone: %s", len(lanes), error)
                logger.debug("", exc_info=True)
                for lane in unfinished:
                    self._run_together([lane.trial])

    def _solo_cost(self, trial: Trial) -> SoloCost:
        """Return what trials with this method and these settings cost alone, measured once."""
        values = trial.to_json()
        key = json.dumps([values[name] for name in _COST_KEYS], sort_keys=True)
        if key not in self._costs:
            base, _ = self._resident(trial, *self._task(trial))
            self._costs[key] = measure_solo(base, lambda: self._lane(trial))
        return self._costs[key]

    def _pack_size(self, trials: Sequence[Trial]) -> int:
        """Return how many of the first trials to train together."""
        if self.device.type != "cuda":
            return 1
        try:
            base, _ = self._resident(trials[0], *self._task(trials[0]))
            largest = max(self._solo_cost(trial).lane_bytes for trial in trials[:MOST_LANES])
        except Exception:  # noqa: BLE001 - which trial it was, and why, is recorded when it runs alone
            return 1
        return min(MOST_LANES, lanes_that_fit(base, largest))

    def _pays_to_compile(self, lanes: Sequence[Lane]) -> bool:
        """Return whether compiling the model's block saves more time than it takes.

        It takes about 15 seconds per method and form of batch, and saves about a third of a step (docs/performance.md).
        """
        if self.compiled != "auto":
            return self.compiled == "on"
        seconds = sum((self._solo_cost(lane.trial).step_seconds or 0.0) * lane.steps for lane in lanes)
        kinds = len({(lane.trial.method, json.dumps(lane.trial.to_json()["config"])) for lane in lanes})
        return self.device.type == "cuda" and 0.3 * seconds > 15 * kinds * lanes[0].forms(10)

    def _lane(self, trial: Trial) -> Lane:
        task, recipe = self._task(trial)
        base, tokenizer = self._resident(trial, task, recipe)
        context = TaskContext(
            tokenizer=tokenizer, recipe=recipe, seed=trial.seed, data_dir=self.data_dir,
            adapter_parameters=trial.adapter_parameters, allow_code_execution=self.allow_code_execution,
            base_model=base.model,
        )  # fmt: skip
        seed = trial.seed if task.seeded_data else None
        key = (trial.task, json.dumps(trial.to_json()["recipe"], sort_keys=True), trial.model_revision, seed)
        if key not in self._data:
            if len(self._data) >= 8:
                self._data.pop(next(iter(self._data)))
            self._data[key] = task.load(context)
        kind = self.registry.method(trial.method)
        method, layer_methods = trial.build_methods(kind)
        lane = Lane(base, trial, method, layer_methods, context, self._data[key])
        if lane.adapter_parameters() != trial.adapter_parameters:
            raise RuntimeError(
                f"method {trial.method!r} trains {lane.adapter_parameters():,} adapter parameters, "
                f"its formula says {trial.adapter_parameters:,}: correct trainable_parameters() "
                f"(`harness check {trial.method}`)"
            )
        return lane

    def _task(self, trial: Trial) -> tuple[Task, Any]:
        task = self.registry.task(trial.task)()
        return task, trial.build_recipe(task)

    def _resident(self, trial: Trial, task: Task, recipe: Any) -> tuple[Base, Any]:
        shape = json.dumps({**task.model_arguments(recipe)}, sort_keys=True, default=str)
        key = (trial.task, trial.model, trial.model_revision, trial.precision, shape)
        if self._base is None or self._base[0] != key:
            self._base = None  # free the old one first
            choice = ModelChoice(trial.model, trial.model_revision)
            model, fresh = load_model(choice, task, recipe, trial.precision, self.device)
            tokenizer = load_tokenizer(choice, task, recipe)
            cast(Any, model).config.pad_token_id = tokenizer.pad_token_id
            self._base = (key, Base(model, task, trial.precision, fresh, self.recomputes), tokenizer)
        return self._base[1], self._base[2]

    def record(self, lane: Lane, started: str) -> Record:
        """Return the record of a lane that came to an end."""
        trial, evaluation = lane.trial, lane.evaluation
        artifacts: dict[str, str] = {}
        if lane.error is None:
            name = f"adapters/{trial.id}.safetensors"
            artifacts["adapter"] = self.store.write_artifact(name, save(lane.state(), metadata={"trial": trial.id}))
        solo = self._solo_cost(trial)
        metrics = dict(evaluation.metrics) if evaluation else {}
        reasons = dict(evaluation.reasons) if evaluation else {}
        for name, value in metrics.items():
            if value is not None and not math.isfinite(value):
                metrics[name], reasons[name] = None, f"the task computed {value}"
        return self._record(
            trial,
            started,
            lane.error,
            step=lane.done,
            metrics=metrics,
            reasons=reasons,
            items={name: _finite(values) for name, values in evaluation.items.items()} if evaluation else {},
            history=[{**each, "metrics": _only_finite(each["metrics"])} for each in lane.history],
            counts={
                "adapter_parameters": lane.adapter_parameters(),
                "task_parameters": lane.task_parameters(),
                "base_parameters": lane.base_parameters,
                "budget_deviation_fraction": deviation_fraction(trial),
            },
            cost={
                "prepare_seconds": lane.prepare_seconds,
                "train_seconds": lane.train_seconds,
                "evaluate_seconds": lane.evaluate_seconds,
                "steps": lane.done,
                "train_tokens": lane.train_tokens,
                "pack_lanes": lane.pack_lanes,
                "compiled": lane.compiled,
                "step_seconds_solo": solo.step_seconds,
                "tokens_per_second_solo": solo.step_tokens / solo.step_seconds if solo.step_seconds else None,
                "step_flops": solo.step_flops,
                "peak_memory_bytes": solo.peak_memory_bytes,
            },
            artifacts=artifacts,
        )

    def _record(self, trial: Trial, started: str, error: BaseException | None, step: int = 0, **fields: Any) -> Record:
        task = self.registry.task(trial.task)
        if error is not None:
            fields["metrics"] = dict.fromkeys(task.metrics)
            fields["reasons"] = {name: f"{state_of(error)}: {error}" for name in task.metrics}
        return Record(
            trial=trial,
            state=state_of(error),
            main_metric=task.main_metric,
            higher_is_better=task.metrics[task.main_metric].higher_is_better,
            metric_details=describe_metrics(task.metrics),
            environment=self.environment,
            error=None if error is None else describe_error(error, step),
            started_at=started,
            finished_at=_now(),
            **fields,
        )

    def _emit_failure(self, trial: Trial, error: BaseException, started: str) -> None:
        counts = {
            "adapter_parameters": trial.adapter_parameters,
            "budget_deviation_fraction": deviation_fraction(trial),
        }
        self.emit({"event": "record", "record": self._record(trial, started, error, counts=counts).to_json()})


class _Reporter:
    """Turns what the training loop says into events."""

    def __init__(self, worker: Worker, started: str) -> None:
        self.worker, self.started = worker, started
        self.done: set[str] = set()

    def progress(self, lane: Lane, step: int, metrics: Mapping[str, float]) -> None:
        """Send metrics on."""
        self.worker.emit(
            {
                "event": "progress",
                "trial": lane.trial.id,
                "step": step,
                "steps": lane.steps,
                "metrics": _only_finite(metrics),
            }
        )

    def finished(self, lane: Lane) -> None:
        """Send the record."""
        self.done.add(lane.trial.id)
        try:
            self.worker.emit({"event": "record", "record": self.worker.record(lane, self.started).to_json()})
        except OSError as error:  # of the place for results, not of the trial
            self.worker.emit({"event": "stop", "why": f"the adapter of {lane.trial.label} cannot be written: {error}"})
        except Exception as error:  # noqa: BLE001 - a record that cannot be made is that trial's result
            self.worker._emit_failure(lane.trial, error, self.started)


def deviation_fraction(trial: Trial) -> float | None:
    """Return how far a trial's adapter is from its budget; ``None`` for a reference method."""
    if trial.budget_parameters is None:
        return None
    return (trial.adapter_parameters - trial.budget_parameters) / trial.budget_parameters


def describe_metrics(metrics: Mapping[str, Metric]) -> dict[str, dict[str, Any]]:
    """Return metric descriptions as plain JSON types."""
    return {
        name: {"title": m.title, "unit": m.unit, "higher_is_better": m.higher_is_better, "help": m.help}
        for name, m in metrics.items()
    }


def state_of(error: BaseException | None) -> State:
    """Return the end state that an error means."""
    if error is None:
        return State.COMPLETE
    if isinstance(error, TrialDivergedError):
        return State.DIVERGED
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return State.OUT_OF_MEMORY
    return State.FAILED


def describe_error(error: BaseException, step: int) -> dict[str, Any]:
    """Return an error as plain JSON types."""
    text = "".join(traceback.format_exception(error))
    return {"type": type(error).__name__, "message": str(error), "traceback": text, "step": step}


def _finite(values: Sequence[float | None]) -> list[float | None]:
    """Return per-item scores with ``None`` where there is no number, which JSON cannot hold."""
    return [value if value is not None and math.isfinite(value) else None for value in values]


def _only_finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _protocol_stream() -> TextIO:
    """Keep standard output for events, and send everything else that is printed to standard error."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    return stream


def _jobs() -> Iterator[Mapping[str, Any]]:
    """Yield jobs. When the scheduler is gone, however it ended, end at once, whatever is being trained."""
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield json.loads(lines.get())


class _TellingHandler(logging.Handler):
    """Sends the warnings of the harness and of its plugins to the scheduler, whose user shall see them."""

    def __init__(self, emit: Emit, registry: Registry) -> None:
        super().__init__(logging.WARNING)
        kinds = [*registry.methods.values(), *registry.tasks.values()]
        self.packages = {"harness", *(kind.__module__.partition(".")[0] for kind in kinds)}
        self.tell = emit

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] in self.packages:
            self.tell({"event": "warning", "logger": record.name, "message": record.getMessage()})


def main() -> None:
    """Serve jobs until standard input closes."""
    events = _protocol_stream()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers.models.auto.modeling_auto  # noqa: F401 - takes seconds, and the scheduler is still planning
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    set_verbosity_error()  # type: ignore[no-untyped-call]
    disable_progress_bar()  # type: ignore[no-untyped-call]
    line = sys.stdin.readline()
    if not line:
        return  # the command found nothing to do
    setup = json.loads(line)
    if setup["threads"]:
        torch.set_num_threads(setup["threads"])

    def emit(event: Mapping[str, Any]) -> None:
        print(json.dumps(event, allow_nan=False), file=events, flush=True)

    registry = build_registry(setup["block"])
    logging.basicConfig(handlers=[logging.StreamHandler(), _TellingHandler(emit, registry)])
    worker = Worker(
        registry,
        Store(setup["results"]),
        torch.device(setup["device"]),
        Path(setup["data_dir"]) if setup["data_dir"] else None,
        setup["environment"],
        emit,
        setup["allow_code_execution"],
        setup["compiled"],
        setup["recomputes"],
    )
    emit({"event": "idle", "environment": worker.environment})
    for job in _jobs():
        worker.run([Trial.from_json(each) for each in job["trials"]], job["pack"])
        emit({"event": "idle"})


if __name__ == "__main__":
    main()
