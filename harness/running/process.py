"""The executor: a worker's process on this machine as the scheduler sees it, launched, told what to do, heard, ended.

Loads no library that takes time, so that a worker can be launched first and load its own meanwhile.
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
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.contract.trial import Trial

logger = logging.getLogger(__name__)


def launch() -> subprocess.Popen[str]:
    """Start a worker. It loads its libraries and then waits to be told what to do."""
    environment = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", **os.environ}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "harness.running.serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=environment,
        start_new_session=True,  # Ctrl-C is for the scheduler, which stops its workers in order
    )


def kill(process: subprocess.Popen[str]) -> None:
    """End a process at once, with whatever it started."""
    if process.returncode is None:  # else its number may be another's by now
        with suppress(ProcessLookupError, PermissionError):  # it has just ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class WorkerProcess:
    """One worker process and what it is doing.

    Args:
        number: Its place among the workers.
        process: From ``launch``.
        setup: What it is told first.
        events: Where what it says goes.
    """

    def __init__(
        self, number: int, process: subprocess.Popen[str], setup: Mapping[str, Any], events: queue.Queue[Event]
    ) -> None:
        self.number = number
        self.jobs: dict[str, Trial] = {}  # given and not yet finished, by id, in order
        self.started: dict[str, float] = {}  # those of them that it has begun, and when
        self.environment: Mapping[str, Any] = setup["environment"]  # until it has looked at its device
        self.ready = False  # it has loaded the plugins and can work
        self.idle = False
        self.process = process
        self.last_words: deque[str] = deque(maxlen=40)
        threading.Thread(target=self._read_events, args=(events,), daemon=True).start()
        self._errors = threading.Thread(target=self._read_errors, daemon=True)
        self._errors.start()
        self._send(setup)

    def give(self, trials: Sequence[Trial], pack: int) -> None:
        """Give the worker a job."""
        self.jobs, self.idle = {trial.id: trial for trial in trials}, False
        self._send({"trials": [trial.to_json() for trial in trials], "pack": pack})

    def done(self, trial_id: str) -> None:
        """Take a trial off its list."""
        self.jobs.pop(trial_id, None)
        self.started.pop(trial_id, None)

    def kill(self) -> None:
        """End the process at once, with whatever it started."""
        kill(self.process)

    def stop(self) -> None:
        """Ask the worker to save what it trains and to leave."""
        with suppress(ProcessLookupError):
            self.process.terminate()

    def why(self) -> str:
        """Return how the process ended and the last lines it printed."""
        code = self.process.wait()
        self._errors.join(timeout=5)
        end = f"exit code {code}" if code >= 0 else f"signal {-code} ({signal.Signals(-code).name})"
        return f"the worker process ended with {end}\n" + "".join(self.last_words)

    @property
    def was_killed(self) -> bool:
        """Whether something outside ended it at once: the kernel for want of memory, or anybody else."""
        return self.process.returncode == -signal.SIGKILL

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # its death is reported by the reader of its events

    def _read_events(self, events: queue.Queue[Event]) -> None:
        for line in self._stream(self.process.stdout):
            if line.endswith("\n"):  # else the process ended in the middle of it
                events.put((self, json.loads(line)))
        events.put((self, None))

    def _read_errors(self) -> None:
        for line in self._stream(self.process.stderr):
            self.last_words.append(line)
            logger.debug("worker %d: %s", self.number, line.rstrip())

    @staticmethod
    def _stream(stream: IO[str] | None) -> IO[str]:
        assert stream is not None
        return stream


Event = tuple[WorkerProcess, dict[str, Any] | None]  # what a worker said; None: it is gone
