"""A worker as the scheduler knows it: what it was given, what it has begun, whether it can work."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.contract.executor import Executor, ExecutorWorker
    from harness.contract.trial import Trial


class Member:
    """One worker and what it is doing.

    Args:
        number: Its place among the workers.
        executor: Launches it.
        setup: What it is told first.
        hear: Told what it says: ``hear(member, event)``.
    """

    def __init__(self, number: int, executor: Executor, setup: Mapping[str, Any], hear: Any) -> None:
        self.number = number
        self.jobs: dict[str, Trial] = {}  # given and not yet finished, by id, in order
        self.started: dict[str, float] = {}  # those of them that it has begun, and when
        self.environment: Mapping[str, Any] = setup["environment"]  # until it has looked at its device
        self.ready = False  # it has loaded the plugins and can work
        self.idle_since: float | None = None

        def tell(event: Mapping[str, Any]) -> None:
            hear(self, event)

        self.worker: ExecutorWorker = executor.launch(number, tell)
        self.worker.send(setup)

    @property
    def idle(self) -> bool:
        """Whether it waits for a job."""
        return self.idle_since is not None

    def has_waited(self, seconds: float) -> bool:
        """Return whether it has waited for a job longer than this."""
        return self.idle_since is not None and time.monotonic() - self.idle_since > seconds

    def waits(self) -> None:
        """Take note that it waits for a job."""
        self.ready, self.idle_since = True, time.monotonic()

    def give(self, trials: Sequence[Trial], pack: int) -> None:
        """Give the worker a job."""
        self.jobs, self.idle_since = {trial.id: trial for trial in trials}, None
        self.worker.send({"trials": [trial.to_json() for trial in trials], "pack": pack})

    def done(self, trial_id: str) -> None:
        """Take a trial off its list."""
        self.jobs.pop(trial_id, None)
        self.started.pop(trial_id, None)
