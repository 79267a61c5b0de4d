"""The executor for this machine: each worker is a process that is launched, told what to do, heard and ended.

Loads no library that takes time, so that a worker can be launched first and load its own meanwhile.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, ClassVar

from harness.contract.executor import Executor, ExecutorWorker, Hear
from harness.running.kernel import MemoryKills

logger = logging.getLogger(__name__)


class LocalExecutor(Executor):
    """Worker processes on this machine: one for each GPU, or two on a CPU."""

    name: ClassVar[str] = "local"
    title: ClassVar[str] = "Processes on this machine"
    starts_early: ClassVar[bool] = True

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._memory_kills = MemoryKills()
        self._ahead: subprocess.Popen[str] | None = None

    def command(self, number: int) -> Sequence[str]:
        """Return the command of a worker process, which talks on its standard input and output."""
        return [sys.executable, "-P", "-m", "harness.running.serve"]

    def devices(self, device: str, workers: int) -> tuple[tuple[str, ...], int]:
        """Return one device per worker, and its share of the cores."""
        from harness.running.devices import resolve_devices

        return resolve_devices(device, workers)

    def launch_ahead(self) -> None:
        """Start the first worker's process: it loads its libraries while this one loads its own."""
        self._ahead = self._start(0)

    def launch(self, number: int, hear: Hear) -> WorkerProcess:
        """Launch a worker."""
        process, self._ahead = self._ahead or self._start(number), None
        return WorkerProcess(number, process, hear, self._memory_kills)

    def close(self) -> None:
        """End what was launched ahead for nothing."""
        if self._ahead is not None:
            _kill(self._ahead)
            self._ahead = None

    def _start(self, number: int) -> subprocess.Popen[str]:
        return subprocess.Popen(  # noqa: S603  our own, or a plug-in's
            self.command(number),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", **os.environ},
            start_new_session=True,  # Ctrl-C is for the scheduler, which stops its workers in order
        )


def _kill(process: subprocess.Popen[str]) -> None:
    if process.returncode is None:  # else its number may be another's by now
        with suppress(ProcessLookupError, PermissionError):  # it has just ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class WorkerProcess(ExecutorWorker):
    """A worker process of this machine.

    Args:
        number: Its place among the workers.
        process: Which serves (``serve``).
        hear: Told what it says.
        memory_kills: What the kernel says of processes that it ended.
    """

    def __init__(
        self, number: int, process: subprocess.Popen[str], hear: Hear, memory_kills: MemoryKills
    ) -> None:  # fmt: skip
        self.number, self.process, self._hear, self._memory_kills = number, process, hear, memory_kills
        self.last_words: deque[str] = deque(maxlen=40)
        threading.Thread(target=self._read_events, daemon=True).start()
        self._errors = threading.Thread(target=self._read_errors, daemon=True)
        self._errors.start()

    def send(self, message: Mapping[str, Any]) -> None:
        """Write a message to its standard input."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # its death is reported by the reader of its events
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()

    def kill(self) -> None:
        """End the process at once, with whatever it started."""
        _kill(self.process)

    def stop(self) -> None:
        """Ask it to save and to leave, by SIGTERM."""
        with suppress(ProcessLookupError):
            self.process.terminate()

    def _read_events(self) -> None:
        end: Mapping[str, Any] | None = None
        for line in self._stream(self.process.stdout):
            if not line.endswith("\n"):  # the process ended in the middle of it
                continue
            event = json.loads(line)
            if event["event"] == "ended":  # it knows better why
                end = event
            else:
                self._hear(event)
        ended = self._ended()
        self._hear(end or ended)

    def _ended(self) -> Mapping[str, Any]:
        """Return how the process ended, with the last lines it printed."""
        code = self.process.wait()
        self._errors.join(timeout=1)
        end = f"exit code {code}" if code >= 0 else f"signal {-code} ({signal.Signals(-code).name})"
        why, state = f"the worker process ended with {end}\n" + "".join(self.last_words), "lost"
        if code >= 0:  # whatever exits, does so on purpose
            state = "failed"
        elif code == -signal.SIGKILL and (memory := self._memory_kills.why(self.process.pid)):
            why, state = f"{memory}; {why}", "out_of_memory"
        return {"event": "ended", "why": why, "state": state}

    def _read_errors(self) -> None:
        for line in self._stream(self.process.stderr):
            self.last_words.append(line)
            logger.debug("worker %d: %s", self.number, line.rstrip())

    @staticmethod
    def _stream(stream: IO[str] | None) -> IO[str]:
        assert stream is not None
        return stream
