"""Claims: which trials somebody is training right now, among all commands and machines that share a result root.

<root>/claims/<trial id>         who holds it
<root>/claims/<owner>.beat       changes as long as the owner lives

An owner is one command. It is dead when its process is gone, where this machine can see that; elsewhere when its beat
has not changed for a minute, by the clock of whoever waits: no two clocks are compared. A process that can be seen to
live is never robbed, however slow it is.

On a folder, a claim is a file that nobody else could create, and a dead one's is taken over under a lock. Where files
cannot be created exclusively (any other URL), a claimant writes its name into a free place, waits longer than anybody
takes to write, and holds the claim if its name is still there (Fischer's rule).

What is not here: records (``store``), what is done with a claimed trial (``running.schedule``).
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from harness.results.owner import is_running, this_machine, this_process
from harness.results.store import Store

logger = logging.getLogger(__name__)

FOLDER = "claims"
LOCK = "lock"
LIFETIME_SECONDS = 60.0
SETTLE_SECONDS = 3.0


class Claims:
    """One owner's claims on trials of a result root.

    Args:
        store: The result root.
        lifetime_seconds: How long an owner that cannot be seen may be silent.
        settle_seconds: Longer than anybody takes to write a small file there; only where files cannot be created
            exclusively.
    """

    def __init__(
        self, store: Store, lifetime_seconds: float = LIFETIME_SECONDS, settle_seconds: float = SETTLE_SECONDS
    ) -> None:
        self.store, self.lifetime_seconds, self.settle_seconds = store, lifetime_seconds, settle_seconds
        self.owner = f"{this_machine()}.{this_process()}.{uuid.uuid4().hex}"  # so that its beat can be swept
        self.held: set[str] = set()
        self._me = json.dumps({"owner": self.owner, "machine": this_machine(), "process": this_process()}).encode()
        self._beats: dict[str, tuple[bytes | None, float]] = {}  # of other owners: what it was, and since when
        self._closed = threading.Event()
        self._heart: threading.Thread | None = None

    def take(self, trial_ids: Sequence[str]) -> set[str]:
        """Claim trials, and return those that are now ours; the others somebody living holds."""
        self._start_beating()
        wanted = [each for each in trial_ids if each not in self.held]
        if wanted:
            self.held |= self._take_exclusively(wanted) if self.store.local else self._take_by_waiting(wanted)
        return {each for each in trial_ids if each in self.held}

    def release(self, trial_id: str) -> None:
        """Give a claim back: the trial has its record, or nobody here trains it any more."""
        if trial_id in self.held:
            self.held.discard(trial_id)
            with suppress(OSError):  # else it expires with its owner
                self.store.remove_artifact(self._name(trial_id))

    def sweep(self) -> None:
        """Remove claims of dead owners, in a folder: nobody may ever ask for their trials again.

        An owner that cannot be seen from here counts as dead when it was silent since an earlier look.
        """
        folder = self.store.local and self.store.local / FOLDER
        for path in folder.iterdir() if folder and folder.is_dir() else ():
            trial_id = path.name
            if path.suffix or trial_id == LOCK or not self._is_dead(self._read(trial_id)):
                continue
            with self._alone(), suppress(OSError):
                if self._is_dead(self._read(trial_id)):  # still: nobody took it over
                    self.store.remove_artifact(self._name(trial_id))

    def close(self) -> None:
        """Give everything back, and remove what dead owners left."""
        self._closed.set()
        if self._heart is None:
            return
        self._heart.join()
        with suppress(OSError):
            self.sweep()
        for trial_id in list(self.held):
            self.release(trial_id)
        with suppress(OSError):
            self.store.remove_artifact(self._beat_name(self.owner))

    def _take_exclusively(self, wanted: Sequence[str]) -> set[str]:
        taken = set()
        for trial_id in wanted:
            try:
                self.store.create_artifact(self._name(trial_id), self._me)
                taken.add(trial_id)
            except FileExistsError:
                if self._is_dead(self._read(trial_id)) and self._take_over(trial_id):
                    taken.add(trial_id)
        return taken

    def _take_over(self, trial_id: str) -> bool:
        """Put our name in a dead owner's place, unless somebody else was faster."""
        with self._alone():
            if not self._is_dead(self._read(trial_id)):
                return False
            self.store.write_artifact(self._name(trial_id), self._me)
            return True

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one process at a time take over; the kernel ends the turn of one that dies."""
        import fcntl

        assert self.store.local is not None
        lock = os.open(self.store.local / FOLDER / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _take_by_waiting(self, wanted: Sequence[str]) -> set[str]:
        free = [each for each in wanted if self._is_free(self._read(each))]
        written = []
        for trial_id in free:
            begin = time.monotonic()
            if self._is_free(self._read(trial_id)):
                self.store.write_artifact(self._name(trial_id), self._me)
                if time.monotonic() - begin < self.settle_seconds / 2:  # else another may hold it by now
                    written.append(trial_id)
        if written:
            time.sleep(self.settle_seconds)
        return {each for each in written if self._read(each) == json.loads(self._me)}

    def _is_free(self, claim: Any) -> bool:
        return claim is None or claim == json.loads(self._me) or self._is_dead(claim)

    def _is_dead(self, claim: Any) -> bool:
        """Return whether the owner of a claim is gone. A claim that is gone has no owner to be dead."""
        if claim is None:
            return False
        owner = str(claim.get("owner")) if isinstance(claim, dict) else ""
        if owner == self.owner:
            return False
        if isinstance(claim, dict) and claim.get("machine") == this_machine():
            return not is_running(claim.get("process"))
        try:
            beat: bytes | None = self.store.read_artifact(self._beat_name(owner))
        except OSError:
            beat = None
        before, since = self._beats.get(owner, (b"never seen", 0.0))
        if beat != before:
            self._beats[owner] = beat, time.monotonic()
            return False
        return time.monotonic() - since > self.lifetime_seconds

    def _read(self, trial_id: str) -> Any:
        """Return what a claim says; ``None`` if there is none."""
        try:
            content = self.store.read_artifact(self._name(trial_id))
        except OSError:
            return None
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            return {}  # nobody that we know: it expires

    def _start_beating(self) -> None:
        if self._heart is None:
            self._beat(0)
            self._heart = threading.Thread(target=self._keep_beating, daemon=True)
            self._heart.start()
            with suppress(OSError):
                self.sweep()  # a first look at owners that cannot be seen from here

    def _keep_beating(self) -> None:
        number = 0
        while not self._closed.wait(self.lifetime_seconds / 6):
            number += 1
            try:
                self._beat(number)
            except OSError as error:
                logger.debug("the beat of %s cannot be written: %s", self.owner, error)

    def _beat(self, number: int) -> None:
        self.store.write_artifact(self._beat_name(self.owner), str(number).encode())

    @staticmethod
    def _name(trial_id: str) -> str:
        return f"{FOLDER}/{trial_id}"

    @staticmethod
    def _beat_name(owner: str) -> str:
        return f"{FOLDER}/{Path(owner).name}.beat"
