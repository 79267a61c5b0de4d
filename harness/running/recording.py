"""What is written down of a trial: its record, when it has ended, when it could not start, when its worker is gone.

What is not here: a record's format (``contract.record``), where records are kept (``results.store``).
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch

from harness.contract.method import TrialContext
from harness.contract.record import Record, State
from harness.contract.task import Evaluation, Metric, Task
from harness.contract.trial import Trial
from harness.errors import TrialDivergedError
from harness.results.store import Store

if TYPE_CHECKING:
    from harness.engine.cost import SoloCost
    from harness.engine.lane import Lane


class Recording:
    """Makes the records of one worker's trials.

    Args:
        store: Where adapters are written.
        environment: Goes into every record.
    """

    def __init__(self, store: Store, environment: Mapping[str, Any]) -> None:
        self.store, self.environment = store, environment

    def ended(self, lane: Lane, task: type[Task], solo: SoloCost, started: str) -> Record:
        """Return the record of a lane that came to an end; a complete one's adapter is written to the store."""
        from safetensors.torch import save

        trial, evaluation = lane.trial, lane.evaluation
        artifacts: dict[str, str] = {}
        if lane.error is None:
            name = f"adapters/{trial.id}.safetensors"
            artifacts["adapter"] = self.store.write_artifact(name, save(lane.state(), metadata={"trial": trial.id}))
        metrics = dict(evaluation.metrics) if evaluation else {}
        reasons = dict(evaluation.reasons) if evaluation else {}
        for name, value in metrics.items():
            if value is not None and not math.isfinite(value):
                metrics[name], reasons[name] = None, f"the task computed {value}"
        cost = _cost(lane, solo)
        reasons |= {name: _why_not(name, solo) for name, value in cost.items() if value is None}
        return self._record(
            trial,
            task,
            lane.error,
            started,
            step=lane.done,
            metrics=metrics,
            reasons=reasons,
            environment={**self.environment, **_layers_without_adapter(lane), **_scoring(evaluation)},
            items={name: _finite(values) for name, values in evaluation.items.items()} if evaluation else {},
            item_groups=dict(evaluation.item_groups) if evaluation else {},
            metric_details=_describe_metrics(task.metrics, evaluation.chance if evaluation else {}),
            history=[{**each, "metrics": only_finite(each["metrics"])} for each in lane.history],
            counts={
                "adapter_parameters": lane.adapter_parameters(),
                **_final_parameters(trial),
                "task_parameters": lane.task_parameters(),
                "base_parameters": lane.base.parameters,
                "budget_deviation_fraction": trial.budget_deviation_fraction,
                **({"checkpoint_step": lane.best.step} if lane.best and lane.evaluation else {}),
            },
            cost=cost,
            artifacts=artifacts,
            resolved=_resolved(lane),
        )

    def failed(self, trial: Trial, task: type[Task], error: BaseException, started: str) -> Record:
        """Return the record of a trial that could not start, or whose result cannot be written down."""
        counts = {
            "adapter_parameters": trial.adapter_parameters,
            **_final_parameters(trial),
            "budget_deviation_fraction": trial.budget_deviation_fraction,
        }
        return self._record(trial, task, error, started, counts=counts)

    def _record(
        self, trial: Trial, task: type[Task], error: BaseException | None, started: str, step: int = 0, **fields: Any
    ) -> Record:  # fmt: skip
        state = _state_of(error)
        if error is not None:
            missing = _no_metrics(task, state, str(error))
            fields["reasons"] = {**fields.get("reasons", {}), **missing["reasons"]}
            fields["metrics"] = missing["metrics"]
        return Record(
            trial=trial,
            state=state,
            main_metric=task.main_metric,
            higher_is_better=task.metrics[task.main_metric].higher_is_better,
            error=None if error is None else _describe_error(error, step),
            started_at=started,
            finished_at=now(),
            **{"environment": self.environment, "metric_details": _describe_metrics(task.metrics, {}), **fields},
        )


def _layers_without_adapter(lane: Lane) -> dict[str, list[str]]:
    """Return which layers of the model no adapter can work in, and why, where there are any."""
    left_out = [str(each) for each in lane.base.left_out]
    return {"layers_without_adapter": left_out} if left_out else {}


def _scoring(evaluation: Evaluation | None) -> dict[str, dict[str, str]]:
    """Return what the task says of how it scored, e.g. which judge it asked, if it says anything."""
    return {"scoring": dict(evaluation.notes)} if evaluation and evaluation.notes else {}


def lost(
    trial: Trial, task: type[Task], environment: Mapping[str, Any], started: str, state: State, kind: str, message: str
) -> Record:
    """Return the record of a trial whose worker cannot write it.

    Args:
        trial: What was to be run.
        task: Its task.
        environment: Of the worker, as far as it is known.
        started: When the trial started.
        state: How it ended.
        kind: A name for what happened, in the place of an exception's.
        message: What happened. Its first line says it in short.
    """
    first = message.splitlines()[0]
    return Record(
        trial=trial,
        state=state,
        **_no_metrics(task, state, first),
        main_metric=task.main_metric,
        higher_is_better=task.metrics[task.main_metric].higher_is_better,
        environment=environment,
        error={"type": kind, "message": first, "traceback": message, "step": None},
        started_at=started,
        finished_at=now(),
    )


def now() -> str:
    """Return the time, as records hold it: ISO 8601, UTC, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def only_finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that are numbers JSON can hold."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _finite(values: Sequence[float | None]) -> list[float | None]:
    """Return per-item scores with ``None`` where there is no number, which JSON cannot hold."""
    return [value if value is not None and math.isfinite(value) else None for value in values]


def _cost(lane: Lane, solo: SoloCost) -> dict[str, float | int | None]:
    rate = None if solo.step_tokens is None or not solo.step_seconds else solo.step_tokens / solo.step_seconds
    return {
        "prepare_seconds": lane.prepare_seconds,
        "initialise_seconds": solo.initialise_seconds,
        "train_seconds": lane.train_seconds,
        "evaluate_seconds": lane.evaluate_seconds,
        "steps": lane.done,
        "train_tokens": lane.train_tokens,
        "padding_fraction": 1 - lane.train_tokens / lane.padded_tokens if lane.padded_tokens else 0.0,
        "batch_forms": lane.forms,
        "pack_lanes": lane.pack_lanes,
        "compiled": lane.compiled,
        "recomputes": lane.recomputes or lane.base.recomputes,
        "micro_batch_size": lane.rows_at_once,
        "step_seconds_solo": solo.step_seconds,
        "tokens_per_second_solo": rate,
        "step_flops": solo.step_flops,
        "peak_memory_bytes": solo.peak_memory_bytes,
    }


def _why_not(name: str, solo: SoloCost) -> str:
    """Return why a cost is missing."""
    measured = {"step_seconds_solo": "step_seconds", "tokens_per_second_solo": "step_seconds"}.get(name, name)
    return solo.reasons.get(measured, "not measured")


def _no_metrics(task: type[Task], state: State, why: str) -> dict[str, Any]:
    """Return the metrics of a trial that has none, and the reason."""
    return {
        "metrics": dict.fromkeys(task.metrics),
        "reasons": dict.fromkeys(task.metrics, f"{state}: {why}"),
    }


def _resolved(lane: Lane) -> dict[str, dict[str, Any]]:
    """Return what a trial's settings and recipe became where they left it to the harness until the data was read."""
    asked, context = lane.method.config, TrialContext(lane.base.task.purpose, lane.steps)
    values = {each.name: getattr(lane.method.resolve(asked, context), each.name) for each in fields(asked)}
    settings = {name: value for name, value in values.items() if value != getattr(asked, name)}
    return {"settings": settings, "recipe": lane.recipe.resolve(lane.steps)}


def _final_parameters(trial: Trial) -> dict[str, int]:
    """Return how many adapter parameters are left when training ends, where those are not all."""
    return {} if trial.final_parameters is None else {"final_parameters": trial.final_parameters}


def _describe_metrics(metrics: Mapping[str, Metric], chance: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Return how to read each metric, and what guessing scores, where that is known."""
    described: dict[str, dict[str, Any]] = {name: asdict(metric) for name, metric in metrics.items()}
    for name, level in chance.items():
        described[name]["chance"] = level
    return described


def _state_of(error: BaseException | None) -> State:
    """Return the end state that an error means."""
    if error is None:
        return State.COMPLETE
    if isinstance(error, TrialDivergedError):
        return State.DIVERGED
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return State.OUT_OF_MEMORY
    return State.FAILED


def _describe_error(error: BaseException, step: int) -> dict[str, Any]:
    text = "".join(traceback.format_exception(error))
    # What comes from outside, a network or a device, may be there the next time.
    transient = isinstance(error, OSError) and not isinstance(error, (FileNotFoundError, PermissionError))
    return {
        "transient": transient,
        "type": type(error).__name__,
        "message": str(error),
        "traceback": text,
        "step": step,
    }
