"""The hooks that a plugin may implement. ``docs/hooks.md`` has an example of each.

pluggy passes arguments by name and ignores keyword-only parameters, so no hook uses ``*``. An implementation may take
fewer arguments than the specification, which lets hooks grow without breaking plugins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from harness.contract.analysis import Analysis
    from harness.contract.data_task import DataTask
    from harness.contract.executor import Executor
    from harness.contract.method import Method
    from harness.contract.record import Record
    from harness.contract.task import Metric, Task
    from harness.contract.trial import Trial

PROJECT = "harness"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def harness_register_methods() -> Sequence[type[Method]]:  # type: ignore[empty-body]
    """Return the methods this plugin provides. Called once per command, in the scheduler's and each worker's process.

    An exception here stops the command, naming the plugin.
    """


@hookspec
def harness_register_tasks() -> Sequence[type[Task]]:  # type: ignore[empty-body]
    """Return the tasks this plugin provides. Called once per command, in the scheduler's and each worker's process.

    An exception here stops the command, naming the plugin.
    """


@hookspec
def harness_register_data_tasks() -> Sequence[type[DataTask]]:  # type: ignore[empty-body]
    """Return the tasks this plugin provides for data that users bring, one per kind of data.

    Called once per command, in the scheduler's and each worker's process. An exception here stops the command, naming
    the plugin.
    """


@hookspec
def harness_register_suites() -> Sequence[Path]:  # type: ignore[empty-body]
    """Return paths of TOML suite files; the file's name without ``.toml`` is the suite's.

    Called once per command, in the scheduler's and each worker's process. An exception stops the command, naming the
    plugin.
    """


@hookspec
def harness_register_analyses() -> Sequence[type[Analysis]]:  # type: ignore[empty-body]
    """Return the analyses this plugin provides. Called once per command, in the scheduler's and each worker's process.

    An exception here stops the command, naming the plugin.
    """


@hookspec
def harness_register_executors() -> Sequence[type[Executor]]:  # type: ignore[empty-body]
    """Return the executors this plugin provides. Called once per command, in the scheduler's and each worker's process.

    An exception here stops the command, naming the plugin. Import what a cluster needs when one is asked for, not here.
    """


@hookspec
def harness_trial_started(trial: Trial, environment: Mapping[str, Any]) -> None:
    """Observe that a trial begins. Called in the scheduler's process.

    A trial may begin twice: alone, after the pack that it was in failed. What an observer raises is logged, loses
    nothing, and makes the command exit with 3.
    """


@hookspec
def harness_trial_progress(trial: Trial, step: int, metrics: Mapping[str, float]) -> None:
    """Observe metrics of a running trial at a step. Called in the scheduler's process, several times per trial."""


@hookspec
def harness_trial_finished(trial: Trial, record: Record) -> None:
    """Observe the end of a trial, in every end state, after its record is safely on disk. Scheduler's process."""


@hookspec
def harness_sweep_finished() -> None:
    """Observe that no more trials come, e.g. to write what was buffered.

    Called in the scheduler's process, once, also after Ctrl-C.
    """


@hookspec
def harness_forecast(  # type: ignore[empty-body]
    trials: Sequence[Trial], records: Sequence[Record], metrics: Mapping[str, Metric]
) -> str:
    """Return text for the end of ``harness plan``: what the planned trials will be able to tell.

    Args:
        trials: Those that will report, finished or not; where rates are searched, at any rate.
        records: Of those of the plan's trials that are complete.
        metrics: By task, the metric that ranks.
    """


@hookspec
def harness_summarize(records: Sequence[Record], results: str) -> str:  # type: ignore[empty-body]
    """Return text for the end of ``harness run``, e.g. a table. Scheduler's process, once per command.

    Args:
        records: Of the sweep's trials, those of earlier runs included.
        results: The result root where they are now, as the user gave it; theirs is where they were written.
    """


@hookspec
def harness_undecided(records: Sequence[Record]) -> Sequence[str]:  # type: ignore[empty-body]
    """Return the cells (``Trial.cell``) that more seeds would help, of a run until methods are separated.

    Called in the scheduler's process after every look, and by ``harness plan``; what several plugins name is put
    together. What it raises stops the command.

    Args:
        records: Of the run's trials up to this look; their environment holds the plan of looks (``harness.Looks``).
    """


@hookspec
def harness_uncompared(records: Sequence[Record]) -> Sequence[str]:  # type: ignore[empty-body]
    """Return which methods of a run until methods are separated are compared with no other, and why: a line each.

    Called in the scheduler's process when such a run is over, since such methods get no more seeds.

    Args:
        records: Of the run's trials; their environment holds the plan of looks (``harness.Looks``).
    """


@hookspec
def harness_best_trial(records: Sequence[Record]) -> str:  # type: ignore[empty-body]
    """Return the id of the trial whose adapter to use. Called by ``harness export best``; the first answer counts."""


@hookspec
def harness_compare(records: Sequence[Record]) -> Sequence[Mapping[str, Any]]:  # type: ignore[empty-body]
    """Return every pair of configurations, a row each. Called by ``harness.compare``; the first answer counts."""
