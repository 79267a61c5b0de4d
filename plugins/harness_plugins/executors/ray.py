"""Workers on a Ray cluster, wherever it has room; each keeps its base model and its data for as long as it has work.

A worker is asked for as an actor, with its share of a GPU, and comes when the cluster has room: what waits is what an
autoscaler looks at, and a worker with nothing to do gives its share back. The actor holds a worker process of its own
machine and hands messages on. Records come back as events; adapters and checkpoints go to the result root, which every
node must see under the same name.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from harness import Executor, ExecutorWorker, HarnessError, LocalExecutor, MethodConfig, UsageError, hookimpl, setting

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 30.0  # before a user hears that a worker waits for room
LEAVE_SECONDS = 1.0  # that killed workers have to be gone before the connection is cut
PASSED_ON = re.compile(r"(HARNESS|HF|NCCL|TORCH|PYTORCH)_\w+")  # of the environment, to the workers
SECRET = re.compile(r"(?i)token|secret|passw|key")  # Ray shows what it passes on
HEAR, TELL = "hear", "tell"  # groups of an actor's threads, one each: what is told arrives in order


@dataclass(frozen=True)
class RayConfig(MethodConfig):
    """Settings."""

    address: str = setting(
        "auto", "Of the cluster: auto (the one that this machine belongs to), HOST:6379, or ray://HOST:10001."
    )
    gpus: float = setting(1.0, "GPUs of each worker that trains on GPUs; 0.5: two workers share one.", minimum=0.001)
    cpus: float = setting(1.0, "CPU cores of each worker, and so its threads.", minimum=0.001)


class Ray(Executor):
    """Runs workers on a Ray cluster."""

    name: ClassVar[str] = "ray"
    title: ClassVar[str] = "A Ray cluster"
    Config: ClassVar[type[Any]] = RayConfig
    idle_seconds: ClassVar[float] = 60.0

    def __init__(self, config: RayConfig | None = None) -> None:
        super().__init__(config)
        self._share: dict[str, float] = {}
        self._leaving: list[Any] = []

    def devices(self, device: str, workers: int) -> tuple[tuple[str, ...], int]:
        """Return as many workers as fit into the cluster as it is now, unless the user says how many there may be."""
        ray = _connect(self.config.address)
        there = ray.cluster_resources()
        if device == "auto":
            device = "cuda" if there.get("GPU") else "cpu"
        if device not in ("cpu", "cuda"):
            raise UsageError(f"--device {device!r}: Ray chooses which of its GPUs; give auto, cpu or cuda")
        self._share = {"CPU": self.config.cpus, **({"GPU": self.config.gpus} if device == "cuda" else {})}
        fit = min(there.get(name, 0.0) / share for name, share in self._share.items())
        if not workers and fit < 1:
            raise UsageError(
                f"the Ray cluster has {_describe(there)}, too little for a worker with {_describe(self._share)}; give "
                "--executor ray:cpus=...,gpus=... a smaller share, or --workers N to wait for a cluster that grows"
            )
        return ("cuda:0" if device == "cuda" else "cpu",) * (workers or int(fit)), max(1, int(self.config.cpus))

    def launch(self, number: int, hear: Callable[[Mapping[str, Any]], None]) -> RayWorker:
        """Ask the cluster for a worker."""
        import ray

        ray_remote: Any = ray.remote  # its types do not know groups
        kind = ray_remote(max_restarts=0, concurrency_groups={HEAR: 1, TELL: 1})(_Host)
        actor = kind.options(num_cpus=self._share["CPU"], num_gpus=self._share.get("GPU", 0)).remote(number)
        return RayWorker(f"worker {number} ({_describe(self._share)})", actor, hear, self._leaving)

    def close(self) -> None:
        """Leave the cluster, which ends whatever this command still has there."""
        import ray

        if self._leaving:
            ray.wait(self._leaving, num_returns=len(self._leaving), timeout=LEAVE_SECONDS)
        ray.shutdown()


class _Host:
    """The actor: holds a worker process of its machine, and hands on what is said."""

    def __init__(self, number: int) -> None:
        self._heard: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self._worker = LocalExecutor().launch(number, self._heard.put)

    def send(self, message: str) -> None:
        self._worker.send(json.loads(message))

    def stop(self) -> None:
        self._worker.stop()

    def kill(self) -> None:
        self._worker.kill()

    def hear(self) -> str:
        """Wait until something is said, and return all that was, as JSON."""
        events = [self._heard.get()]
        while not self._heard.empty():
            events.append(self._heard.get())
        return json.dumps(events)


class RayWorker(ExecutorWorker):
    """A worker on the cluster, or one that waits for room there.

    Args:
        name: For messages.
        actor: Its host.
        hear: Told what it says.
        leaving: Gets what to wait for when this worker was killed.
    """

    def __init__(
        self, name: str, actor: Any, hear: Callable[[Mapping[str, Any]], None], leaving: list[Any]
    ) -> None:  # fmt: skip
        self.name, self._actor, self._hear, self._leaving = name, actor, hear, leaving
        self._has_ended, self._end_lock = False, threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message; it waits with the worker for room."""
        self._tell("send", json.dumps(message))

    def stop(self) -> None:
        """Ask it to save and to leave."""
        self._tell("stop")

    def kill(self) -> None:
        """End its process, and its actor or the wait for one."""
        import ray

        if not self._has_ended:
            self._leaving.append(self._tell("kill"))
            self._end({"why": "it was ended", "state": "lost"})
            threading.Timer(LEAVE_SECONDS, _give_back, (ray, self._actor)).start()

    def _tell(self, what: str, *arguments: str) -> Any:
        return getattr(self._actor, what).options(concurrency_group=TELL).remote(*arguments)

    def _listen(self) -> None:
        import ray
        from ray.exceptions import RayError

        try:
            asked = self._actor.hear.options(concurrency_group=HEAR).remote()
            if not ray.wait([asked], timeout=PATIENCE_SECONDS)[0] and not self._has_ended:
                logger.warning("%s waits until the Ray cluster has room", self.name)
            while not self._has_ended:
                for event in json.loads(ray.get(asked)):
                    if event["event"] == "ended":
                        self._end(event)
                    elif not self._has_ended:
                        self._hear(event)
                asked = self._actor.hear.options(concurrency_group=HEAR).remote()
        except RayError as error:
            self._end(_obituary(error))
        except Exception as error:  # noqa: BLE001  the connection is cut: the command has ended, or the cluster has
            self._end({"why": f"the Ray cluster cannot be reached: {error}", "state": "lost"})
        _give_back(ray, self._actor)

    def _end(self, event: Mapping[str, Any]) -> None:
        """Say that it has ended, once."""
        with self._end_lock:
            if self._has_ended:
                return
            self._has_ended = True
        self._hear({**event, "event": "ended"})


def _obituary(error: Exception) -> Mapping[str, Any]:
    """Return what became of an actor that does not answer."""
    why = str(error)
    if "creation task" in why or "runtime_env" in why:  # it could not start there, and could not anywhere
        return {"why": f"it cannot start on the Ray cluster: {why}", "state": "failed"}
    if "low on memory" in why:
        return {"why": f"Ray ended it for want of memory: {why}", "state": "out_of_memory"}
    return {"why": f"its Ray node is lost: {why}", "state": "lost", "machine_lost": True}


def _give_back(ray: Any, actor: Any) -> None:
    try:
        ray.kill(actor)
    except Exception:
        logger.debug("an actor is gone already", exc_info=True)


def _connect(address: str) -> Any:
    """Connect to a cluster, and return the module."""
    try:
        import ray
    except ImportError as error:
        raise UsageError(f"--executor ray needs Ray ({error}): pip install 'peft-harness[ray]'") from error
    environment = {
        name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name) and not SECRET.search(name)
    }
    handler = signal.getsignal(signal.SIGTERM)  # Ray puts its own in the place of ours
    try:
        ray.init(
            address,
            ignore_reinit_error=True,
            log_to_driver=False,
            logging_level=logging.WARNING,
            runtime_env={"env_vars": environment},
        )
    except (ConnectionError, ValueError) as error:
        raise UsageError(
            f"no Ray cluster at {address!r} ({error}); start one with `ray start --head`, or say where it is: --address"
        ) from error
    except RuntimeError as error:
        raise HarnessError(f"the Ray cluster at {address!r} cannot be used: {error}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
    return ray


def _describe(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU") if name in resources) or "nothing"


@hookimpl
def harness_register_executors() -> list[type[Ray]]:
    """Return the executor."""
    return [Ray]
