"""The worker's process: reads jobs as JSON lines from standard input, writes events as JSON lines to standard output.

What libraries print goes to standard error. This module loads none of them: a process whose scheduler is gone before
it has begun shall end at once, also while it is still loading.

What is not here: what is done with a job (``worker``), the scheduler's end of the two pipes (``local``).
"""

from __future__ import annotations

import gc
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from harness.planning.registry import Registry
    from harness.running.checkpoints import Checkpoints
    from harness.running.worker import Emit

SAVE_SECONDS = 10.0  # that a worker whose scheduler is gone has to save what it trains


class Inbox:
    """What comes from standard input. When that closes, however the scheduler ended, the process ends."""

    def __init__(self) -> None:
        self._lines: queue.Queue[str] = queue.Queue()
        self._checkpoints: Checkpoints | None = None
        threading.Thread(target=self._read, daemon=True).start()

    def setup(self) -> dict[str, Any]:
        """Return how to work."""
        told: dict[str, Any] = json.loads(self._lines.get())
        return told

    def jobs(self, checkpoints: Checkpoints | None) -> Iterator[Mapping[str, Any]]:
        """Yield jobs; what is being trained when the scheduler goes is saved, if that is this process's to do."""
        self._checkpoints = checkpoints
        while line := self._lines.get():
            yield json.loads(line)

    def _read(self) -> None:
        for line in sys.stdin:
            self._lines.put(line)
        if self._checkpoints is not None:
            self._checkpoints.stop()
            self._lines.put("")
            time.sleep(SAVE_SECONDS)
        os._exit(0)


def main() -> None:
    """Serve jobs until standard input closes."""
    inbox, events = Inbox(), _protocol_stream()
    # What every model needs takes seconds to load, and the scheduler is still planning. A fifth of these seconds would
    # be looking for garbage among objects that all stay.
    gc.disable()
    import torch
    import transformers.modeling_layers
    import transformers.models.auto.modeling_auto  # noqa: F401
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    from harness.contract.trial import Trial
    from harness.engine.shared import Shared
    from harness.planning.registry import build_registry
    from harness.results.store import Store
    from harness.running.checkpoints import Checkpoints, Stopped
    from harness.running.environment import conditions, describe_environment
    from harness.running.followers import Followers, Unwritten, halting, meet
    from harness.running.leaving import leave
    from harness.running.recording import Recording
    from harness.running.worker import DeviceLost, Worker

    set_verbosity_error()  # type: ignore[no-untyped-call]
    disable_progress_bar()  # type: ignore[no-untyped-call]
    setup = inbox.setup()
    with suppress(OSError):  # on another machine it may not exist, and then no path begins there
        os.chdir(setup["folder"])
    if setup["threads"]:
        torch.set_num_threads(setup["threads"])
        os.environ.setdefault("RAYON_NUM_THREADS", str(setup["threads"]))  # of the tokenizers

    def say(event: Mapping[str, Any]) -> None:
        with suppress(BrokenPipeError):  # the scheduler is gone; the end of standard input says so, too
            print(json.dumps(event, allow_nan=False), file=events, flush=True)

    registry = build_registry(setup["block"])
    gc.freeze()
    gc.enable()
    is_first, count = not setup.get("rank"), len(setup["ranks"])
    followers = Followers(setup, say) if count and is_first else None
    emit: Emit = followers.emit if followers else say if is_first else halting(say)
    logging.basicConfig(handlers=[logging.StreamHandler(), _TellingHandler(emit, registry)])
    device = torch.device(setup["device"])
    data_dir = Path(setup["data_dir"]) if setup["data_dir"] else None
    ranks = meet(setup, followers)
    shared = Shared(device, data_dir, setup["allow_code_execution"], setup["recomputes"], ranks)
    divided = {"ranks": count} if count else {}
    environment = {**setup["environment"], **describe_environment(device), **divided}
    if count and device.type == "cuda":
        environment["hardware"] = f"{count} x {environment['hardware']}"
    store = Store(setup["results"]) if is_first else Unwritten(setup["results"])
    recording = Recording(store, environment)
    circumstances = conditions(setup["ranks"][:1] or [setup["device"]], threads=setup["threads"], **divided)
    checkpoints = Checkpoints(store, circumstances, setup["checkpoint_seconds"], ranks)
    signal.signal(signal.SIGTERM, checkpoints.stop)
    worker = Worker(registry, shared, recording, emit, setup["compiled"], checkpoints)
    emit({"event": "idle", "environment": environment})
    try:
        for job in inbox.jobs(checkpoints if is_first else None):
            if followers:
                followers.send(job)
            worker.run([Trial.from_json(each) for each in job["trials"]], job["pack"])
            emit({"event": "idle"})
    except Stopped:
        pass
    except DeviceLost as lost:  # another process can use it, or says why not
        why = f"its process can use {device} no more: {lost}"
        emit({"event": "ended", "why": why, "state": "lost", "machine_lost": lost.is_recorded})
        leave(1)
    if not is_first:
        emit({"event": "leaving"})
        leave(0)


def _protocol_stream() -> TextIO:
    """Keep standard output for events, and send everything else that is printed to standard error."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    return stream


class _TellingHandler(logging.Handler):
    """Sends the warnings of the harness and of its plugins to the scheduler, whose user shall see them."""

    def __init__(self, emit: Emit, registry: Registry) -> None:
        super().__init__(logging.WARNING)
        kinds = [*registry.every_method.values(), *registry.tasks.values()]
        self.packages = {"harness", *(kind.__module__.partition(".")[0] for kind in kinds)}
        self.tell = emit

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] in self.packages:
            self.tell({"event": "warning", "logger": record.name, "message": record.getMessage()})


if __name__ == "__main__":
    main()
