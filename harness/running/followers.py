"""The processes beside a worker's own, where a base model is divided over several devices of one host.

To the scheduler they are one worker, whose process is the first *rank*. It launches the others, which run the same
program (``serve``), hands every job on to them, and speaks for all. One that ends takes all with it: none of them waits
for what does not come. After a trial that failed all leave too, since some may be in the middle of it.

What is not here: what ranks do together (``engine.ranks``).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from harness.engine.ranks import Ranks, Together
from harness.results.store import Store
from harness.running.local import LocalExecutor, WorkerProcess

if TYPE_CHECKING:
    from harness.running.worker import Emit

HOST = "127.0.0.1"
GRACE_SECONDS = 5.0  # that ranks have to fail or to end as well, before one's failure is the trial's
CLEAN = ("complete", "diverged")  # states of trials that end between two updates, on all ranks alike


class Followers:
    """The other ranks of a worker, as the first sees them.

    Args:
        setup: How to work, with the device of each rank.
        emit: Sends an event to the scheduler.
    """

    def __init__(self, setup: Mapping[str, Any], emit: Emit) -> None:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        self._emit, self._lock = emit, threading.RLock()
        self._news = threading.Condition(self._lock)
        self._failed: set[int] = set()  # ranks, in the trial of which this one fails
        self.devices: list[str] = setup["ranks"]
        self._recorded: set[str] = set()
        self._leaving: set[int] = set()  # ranks that said so
        self.meeting = TCPStore(HOST, 0, len(self.devices), is_master=True, wait_for_workers=False)
        executor = LocalExecutor()
        self._workers: list[WorkerProcess] = []
        for number in range(1, len(self.devices)):
            worker = executor.launch(number, partial(self._hear, number))
            self._workers.append(worker)
            told = {"rank": number, "port": self.meeting.port, "device": self.devices[number]}
            worker.send({**setup, **told})

    def send(self, job: Mapping[str, Any]) -> None:
        """Hand a job on."""
        for worker in self._workers:
            worker.send(job)

    def emit(self, event: Mapping[str, Any]) -> None:
        """Send an event of the first rank to the scheduler; after the record of a trial that failed, leave.

        A failure may be that another rank is gone, of which we hear a moment later. Then that one's end is the trial's.
        """
        if has_failed(event):
            with self._news:
                self._news.wait_for(lambda: len(self._failed) == len(self._workers), GRACE_SECONDS)
        self._send(event)

    def _send(self, event: Mapping[str, Any]) -> None:
        with self._lock:
            if event["event"] == "record":
                trial_id = event["record"]["trial_id"]
                if trial_id in self._recorded:
                    return
                self._recorded.add(trial_id)
            self._emit(event)
            if has_failed(event):
                why = "after a trial that failed, the processes that share a model start anew"
                self._leave({"why": why, "state": "lost", "machine_lost": True})

    def _hear(self, number: int, event: Mapping[str, Any]) -> None:
        """Hear another rank. What all say, the first says for them."""
        if event["event"] == "leaving":
            self._leaving.add(number)
        elif event["event"] == "ended" and number not in self._leaving:
            why = f"rank {number} of {len(self.devices)} ({self.devices[number]}) is gone: {event['why']}"
            self._leave({"why": why, "state": event["state"]})
        elif has_failed(event):
            with self._news:
                self._failed.add(number)
                self._news.notify_all()
            time.sleep(GRACE_SECONDS)
            self._send(event)

    def _leave(self, end: Mapping[str, Any]) -> NoReturn:
        """Tell the scheduler why, and end this process and the others at once."""
        with self._lock:
            self._emit({**end, "event": "ended"})
            self._leaving.update(range(len(self.devices)))
            for worker in self._workers:
                worker.kill()
            os._exit(1)


def has_failed(event: Mapping[str, Any]) -> bool:
    """Return whether an event is the record of a trial in the middle of which a rank may stand."""
    return event["event"] == "record" and event["record"]["state"] not in CLEAN


def halting(emit: Emit) -> Emit:
    """Return how another rank than the first sends events: after a failure it waits to be ended, and does no more."""

    def send(event: Mapping[str, Any]) -> None:
        emit(event)
        if has_failed(event):
            threading.Event().wait()

    return send


class Unwritten(Store):
    """A store for other ranks, which read and write nothing: the first writes for all."""

    def write_artifact(self, name: str, content: bytes) -> str:
        """Return the name under which the first rank writes."""
        return name


def meet(setup: Mapping[str, Any], followers: Followers | None) -> Ranks:
    """Return the ranks that this process is one of, when all of them are there.

    Args:
        setup: How to work.
        followers: Of the first rank.
    """
    count, number = len(setup["ranks"]), int(setup.get("rank", 0))
    if count < 2:
        return Ranks()
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = followers.meeting if followers else TCPStore(HOST, setup["port"], count, is_master=False)
    return Together(number, count, store, setup["device"])
