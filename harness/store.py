"""The result root: one write-once JSON per finished trial, on any fsspec URL, and the artifacts beside it.

<root>/<trial id>.json                     the record
<root>/adapters/<trial id>.safetensors     what was trained
<root>/mlflow.db, ...                      views, rebuilt from the records
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from harness.errors import RecordError, UsageError
from harness.record import Record


class Store:
    """Reads and writes records under a root.

    Args:
        root: A local folder or any fsspec URL, e.g. ``results`` or ``s3://bucket/results``.

    Several machines may share a root: a record is written whole under a name of its own and then moved into place, and a
    finished record is never overwritten.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.filesystem, self.path = fsspec.core.url_to_fs(root)

    @property
    def local(self) -> Path | None:
        """Return the root as a local folder, or ``None`` for a remote URL."""
        protocols = self.filesystem.protocol
        return Path(self.path) if "file" in ((protocols,) if isinstance(protocols, str) else protocols) else None

    def prepare(self) -> None:
        """Create the root and prove that it can be written.

        Raises:
            UsageError: It cannot.
        """
        probe = self._join(f".probe-{uuid.uuid4().hex}")
        try:
            self.filesystem.makedirs(self.path, exist_ok=True)
            self.filesystem.pipe_file(probe, b"")
            self.filesystem.rm_file(probe)
        except OSError as error:
            raise UsageError(
                f"cannot write results to {self.root!r}: {error}. Give another folder with --results."
            ) from error

    def ids(self) -> set[str]:
        """Return the ids that have a record, of whatever state."""
        return {Path(name).stem for name in self._list() if name.endswith(".json")}

    def read(self, trial_id: str) -> Record | None:
        """Return the record of a trial, or ``None``.

        Raises:
            RecordError: The file is not a record of this schema; the message names it.
        """
        try:
            text = self.filesystem.cat_file(self._join(f"{trial_id}.json"))
        except FileNotFoundError:
            return None
        try:
            return Record.from_json(json.loads(text))
        except (json.JSONDecodeError, UnicodeDecodeError, RecordError, AttributeError) as error:
            raise RecordError(f"{self.root}/{trial_id}.json: {error}. Move it away to run the trial again.") from error

    def records(self) -> Iterator[Record]:
        """Yield every record, in order of trial id."""
        for trial_id in sorted(self.ids()):
            record = self.read(trial_id)
            if record is not None:
                yield record

    def write(self, record: Record) -> None:
        """Write a record atomically, once. An interrupted trial's record may be replaced, a final one never.

        Raises:
            RecordError: A final record of this trial exists already.
        """
        before = self.read(record.trial_id)
        if before is not None and before.state.is_final:
            raise RecordError(f"{self.root}/{record.trial_id}.json exists ({before.state}); records are written once")
        self._replace(f"{record.trial_id}.json", record.dumps().encode())

    def write_artifact(self, name: str, content: bytes) -> str:
        """Write a file below the root atomically and return its name."""
        self.filesystem.makedirs(self._join(str(Path(name).parent)), exist_ok=True)
        self._replace(name, content)
        return name

    def read_artifact(self, name: str) -> bytes:
        """Return a file below the root."""
        content: bytes = self.filesystem.cat_file(self._join(name))
        return content

    def _replace(self, name: str, content: bytes) -> None:
        target, temporary = self._join(name), self._join(f"{name}.{uuid.uuid4().hex}.tmp")
        local = self.local
        if local is None:
            self.filesystem.pipe_file(temporary, content)
            self.filesystem.mv(temporary, target)
            return
        with Path(temporary).open(
            "wb"
        ) as file:  # on disk before the rename, so that a crash leaves the old or the new file
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(target)

    def _join(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"

    def _list(self) -> list[str]:
        try:
            listing: list[Any] = self.filesystem.ls(self.path, detail=False)
        except FileNotFoundError:
            return []
        return [str(each) for each in listing]
