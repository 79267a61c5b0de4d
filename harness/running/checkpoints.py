"""When trials in training are saved, and where: every so often, and when this process is asked to leave.

<root>/checkpoints/<trial id>.safetensors     a trial that is being trained, or was when its worker ended

What is not here: what is saved (``engine.checkpoint``), who asks (``schedule``).
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from harness.engine.checkpoint import restore_lane, save_lane, unsaved
from harness.engine.lane import Lane
from harness.engine.ranks import Ranks
from harness.errors import HarnessError
from harness.results.store import Store

logger = logging.getLogger(__name__)

MOST_FRACTION = 0.05  # of the time that saving may take: large states are saved less often
FOLDER = "checkpoints"


class Stopped(BaseException):
    """The process was asked to leave, and what it trained is saved. Like ``KeyboardInterrupt``, no trial's error."""


class Checkpoints:
    """Saves lanes, and gives new ones the state that they had.

    Args:
        store: Where they are kept.
        circumstances: What a state depends on besides the trial: under others it is not used.
        every_seconds: How often they are saved; less often where saving takes long.
        ranks: The processes that train together; all of them save at once, and the first says when.
    """

    def __init__(
        self, store: Store, circumstances: Mapping[str, Any], every_seconds: float,
        ranks: Ranks = Ranks(),  # noqa: B008 - has no state
    ) -> None:  # fmt: skip
        self.store, self.every_seconds, self.ranks = store, every_seconds, ranks
        self.stamp = hashlib.sha256(json.dumps(circumstances, sort_keys=True, default=str).encode()).hexdigest()
        self.is_stopping = False
        self._last = time.monotonic()
        self._took = 0.0
        self._at_start: dict[str, Mapping[str, Any]] = {}

    def stop(self, *_: object) -> None:
        """Save at the next opportunity, and stop training then. Can handle a signal."""
        self.is_stopping = True

    def begin(self) -> None:
        """Count the time from now."""
        self._last = time.monotonic()

    def is_due(self) -> bool:
        """Return whether it is time to save."""
        interval = max(self.every_seconds, self._took / MOST_FRACTION)
        return self.ranks.agree(self.is_stopping or time.monotonic() - self._last >= interval)

    def restore(self, lane: Lane) -> None:
        """Let a new lane go on where an earlier try of its trial was saved, if it was."""
        self._at_start[lane.trial.id] = unsaved(lane)
        self._restore(lane)
        if self.ranks.told(lambda: lane.done) != lane.done:
            raise HarnessError(f"{lane.trial.label}: not all of the processes that train it could read its checkpoint")

    def _restore(self, lane: Lane) -> None:
        try:
            content = self.store.read_artifact(name_of(lane.trial.id))
        except OSError:
            return
        with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
            Path(file.name).write_bytes(content)
            try:
                restored = restore_lane(lane, file.name, self.stamp)
            except (SafetensorError, ValueError, KeyError) as error:
                logger.warning("%s: its checkpoint cannot be read, so it starts anew: %s", lane.trial.label, error)
                return
        if restored:
            logger.info("%s goes on at step %d", lane.trial.label, lane.done)

    def save(self, lanes: Sequence[Lane]) -> None:
        """Save lanes that are between two updates.

        Raises:
            Stopped: That was asked for.
        """
        begin = time.monotonic()
        for lane in lanes:
            if unsaved(lane) != self._at_start.get(lane.trial.id):
                logger.warning(
                    "method %s keeps state outside of tensors, so its trials cannot be saved while they train",
                    lane.trial.method,
                )
                continue
            try:
                self.store.write_artifact(name_of(lane.trial.id), save_lane(lane, self.stamp))
            except OSError as error:
                logger.warning("%s cannot be saved, and goes on: %s", lane.trial.label, error)
        self._last = time.monotonic()
        self._took = self._last - begin
        if self.ranks.agree(self.is_stopping):
            raise Stopped


def name_of(trial_id: str) -> str:
    """Return the name below the result root of a trial's checkpoint."""
    return f"{FOLDER}/{trial_id}.safetensors"


def forget(store: Store, trial_id: str) -> None:
    """Remove a trial's checkpoint, if there is one."""
    with suppress(OSError):
        store.remove_artifact(name_of(trial_id))
