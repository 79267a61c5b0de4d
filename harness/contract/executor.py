"""The contract of an executor: where a sweep's workers run, and how messages go to and fro.

A worker is a process that trains what it is given. It gets messages (first how to work, then one job after the other,
each a piece of the sweep) and says what becomes of them in events. Messages and events are mappings of plain JSON
types; what is in them is between the scheduler and its workers, an executor only carries them.

What is not here: who may train what, retries, records and observers (``running.schedule``), which no executor has to
know of.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

Hear = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class NoSettings:
    """The settings of an executor that has none."""


class ExecutorWorker(ABC):
    """One worker, as whoever launched it sees it. None of this waits for the worker."""

    @abstractmethod
    def send(self, message: Mapping[str, Any]) -> None:
        """Give the worker a message, now or as soon as it is there. One that is gone gets nothing, without an error."""

    @abstractmethod
    def stop(self) -> None:
        """Ask it to save what it trains and to leave."""

    @abstractmethod
    def kill(self) -> None:
        """End it, with whatever it started; one that is gone is gone."""


class Executor(ABC):
    """Runs workers somewhere. Subclass it and register it with ``harness_register_executors``.

    A worker is a process that runs ``LocalExecutor.command``, wherever it is: it reads messages as JSON lines from its
    standard input and writes events as JSON lines to its standard output. Where such a process can be started by a
    command (``ssh``, ``srun``), it is enough to subclass ``harness.LocalExecutor`` and to put that command in front.

    Args:
        config: The settings that the user gave, as in ``--executor NAME:setting=value``.

    Class attributes:
        name: Lower-case slug, as in ``--executor``.
        title: What it is, for people.
        Config: Settings: a frozen dataclass of ``setting(...)``, a subclass of ``MethodConfig``. One called ``address``
            is also the option ``--address``.
        idle_seconds: How long a worker for which there is nothing to do is kept, with its base model.
        starts_early: Whether a worker costs so little that one may start before there surely is anything to do.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    Config: ClassVar[type[Any]] = NoSettings
    idle_seconds: ClassVar[float] = math.inf
    starts_early: ClassVar[bool] = False

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config

    @abstractmethod
    def devices(self, device: str, workers: int) -> tuple[tuple[str, ...], int]:
        """Return each worker's device, as it is called where the worker runs, and CPU threads per worker.

        Called once, before anything is launched.

        Args:
            device: As the user says it: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            workers: Most workers at once; 0: what is there.

        Raises:
            UsageError: There is no such thing.
        """

    @abstractmethod
    def launch(self, number: int, hear: Hear) -> ExecutorWorker:
        """Launch a worker and return at once; where there is no room yet, it comes when there is.

        Args:
            number: Its place, an index of ``devices``. One that is gone is followed by another with its number.
            hear: To be called with each event, in order, from any thread. The last is ``{"event": "ended", "why":
                text for people, "state": "lost"}``, exactly one, whatever ended the worker. ``state`` is
                ``out_of_memory`` where that is known to be the reason, and ``failed`` where the worker left on purpose.
                With ``"machine_lost": True`` its trials go to another worker and are not suspected.
        """

    def close(self) -> None:  # noqa: B027  most have nothing to end
        """Let go of what was needed for launching. Every worker has been killed before."""
