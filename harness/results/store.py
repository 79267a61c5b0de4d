"""The result root: one JSON per finished trial, on any fsspec URL, and the artifacts beside it.

<root>/<trial id>.json                     the record; gzipped by hand, `<trial id>.json.gz` is read as well
<root>/adapters/<trial id>.safetensors     what was trained
<root>/claims/                              who trains what right now (``claims``)
<root>/mlflow.db, ...                      views, rebuilt from the records
"""

from __future__ import annotations

import gzip
import io
import logging
import os
import re
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from harness.contract.record import Record, loads
from harness.errors import RecordError, UsageError
from harness.results.owner import is_running, this_machine, this_process

DAY = 86400.0
TEMPORARY = re.compile(r"(?:^|\.)(?P<machine>[^.]+)\.(?P<process>\d+-\d+)\.[0-9a-f]{32}\.(?:tmp|beat)$")
RECORD_NAME = re.compile(r"([0-9a-f]{16})\.json(\.gz)?")
MOST_BYTES = 2**30  # of a record: what says that it is more is no record

log = logging.getLogger(__name__)


class Store:
    """Reads and writes records under a root.

    Args:
        root: A local folder or any fsspec URL, e.g. ``results`` or ``s3://bucket/results``.

    Several machines may share a root: a record is written whole under a name of its own and then put in its place, and
    a final record is never overwritten. On a local or network folder this holds whoever writes at the same moment. On
    other URLs, two that finish one trial within the same second may overwrite each other, with the same trial's result.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        try:
            self.filesystem, self.path = fsspec.core.url_to_fs(root)
        except (ValueError, ImportError) as error:
            raise UsageError(f"results {root!r}: {error}; give a folder, or install what this URL needs") from error

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
            self._sweep()
        except OSError as error:
            raise UsageError(
                f"cannot write results to {self.root!r}: {error}. Give another folder with --results."
            ) from error

    def _sweep(self) -> None:
        """Remove half-written files and beats of this machine's processes that are gone, and any that is a day old."""
        for path in (each for kind in ("*.tmp", "*.beat") for each in (self.local.rglob(kind) if self.local else ())):
            owner = TEMPORARY.search(path.name)
            with suppress(OSError):
                ours = owner is not None and owner["machine"] == this_machine()
                if not is_running(owner["process"]) if owner and ours else time.time() - path.stat().st_mtime > DAY:
                    path.unlink()

    def ids(self) -> set[str]:
        """Return the ids that have a record, of whatever state."""
        return {match[1] for name in self._list() if (match := RECORD_NAME.fullmatch(name.rsplit("/", 1)[-1]))}

    def read(self, trial_id: str) -> Record | None:
        """Return the record of a trial, or ``None``. Of a plain file and a gzipped one, the plain one counts.

        Raises:
            RecordError: The file is not a record of this schema; the message names it.
        """
        files = [(name, content) for name in _names(trial_id) if (content := self._content(name)) is not None]
        if not files:
            return None
        name, content = files[0]
        try:
            text = plain(name, content)
            record = Record.from_json(loads(text))
            if record.trial_id != trial_id:
                raise RecordError(f"holds trial {record.trial_id}, which is not its name: it was renamed")
        except (ValueError, RecordError) as error:  # ValueError: not JSON, or not even text
            raise RecordError(f"{self.root}/{name}: {error}. Move it away to run the trial again.") from error
        for other, packed in files[1:]:
            if not _says(other, packed, text):
                log.warning("passed over: %s/%s: %s", self.root, other, other_result(f"{self.root}/{name}"))
        return record

    def _content(self, name: str) -> bytes | None:
        try:
            content: bytes = self.filesystem.cat_file(self._join(name))
        except (FileNotFoundError, IsADirectoryError):
            return None
        return content

    def records(self) -> Iterator[Record]:
        """Yield every record, in order of trial id, read from its file; one that cannot be read is warned of."""
        for trial_id in sorted(self.ids()):
            try:
                record = self.read(trial_id)
            except RecordError as error:
                log.warning("passed over: %s", error)
                continue
            if record is not None:
                yield record

    def write(self, record: Record) -> Record:
        """Write a record atomically, and return it as written. A final record is never replaced.

        Of any other, which says something about its run alone, the new record keeps the history in ``attempts``.

        Raises:
            RecordError: A final record of this trial exists already.
        """
        before = self.read(record.trial_id)
        if before is not None and before.state.is_final:
            raise RecordError(f"{self.root}/{record.trial_id}.json exists ({before.state}); records are written once")
        name = f"{record.trial_id}.json"
        if self.local is None:
            record = _after(before, record)
            self._replace(name, record.dumps().encode())
            return record
        if before is not None and not Path(self._join(name)).exists():  # it was gzipped: the new one takes its place
            record = _after(before, record)
            self._create(name, record.dumps().encode())
            Path(self._join(_names(record.trial_id)[1])).unlink(missing_ok=True)
            return record
        try:
            self._create(name, record.dumps().encode())
            return record
        except FileExistsError:  # an earlier try's, or that of another machine which finished it just now
            aside = Path(self._join(_temporary_name(name)))
            Path(self._join(name)).replace(aside)  # takes whatever is there now, so look at it before it goes
            try:
                before = Record.from_json(loads(aside.read_bytes()))
                if before.state.is_final:
                    with suppress(FileExistsError):  # a third one's
                        _put(aside, Path(self._join(name)))
                    raise RecordError(f"{self.root}/{name} exists by now; records are written once") from None
            finally:
                aside.unlink(missing_ok=True)
            record = _after(before, record)
            self._create(name, record.dumps().encode())
            return record

    def write_artifact(self, name: str, content: bytes) -> str:
        """Write a file below the root atomically and return its name."""
        self.filesystem.makedirs(self._join(str(Path(name).parent)), exist_ok=True)
        self._replace(name, content)
        return name

    def create_artifact(self, name: str, content: bytes) -> None:
        """Write a file of a local root that must not exist yet; otherwise ``FileExistsError``, whoever was faster."""
        Path(self._join(name)).parent.mkdir(parents=True, exist_ok=True)
        self._create(name, content)

    def remove_artifact(self, name: str) -> None:
        """Remove a file below the root."""
        self.filesystem.rm_file(self._join(name))

    def read_artifact(self, name: str) -> bytes:
        """Return a file below the root."""
        content: bytes = self.filesystem.cat_file(self._join(name))
        return content

    def artifacts(self, folder: str) -> list[str]:
        """Return the names of the JSON files in a folder below the root, whatever signs the root's own name holds."""
        self.filesystem.invalidate_cache(self._join(folder))
        try:
            found: list[Any] = self.filesystem.ls(self._join(folder), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(f"{folder}/{PurePosixPath(str(each)).name}" for each in found if str(each).endswith(".json"))

    def _create(self, name: str, content: bytes) -> None:
        """Write a local file that must not exist yet, whole or not at all."""
        with self._temporary(name, content) as temporary:
            _put(temporary, Path(self._join(name)))

    def _replace(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all, in place of any other."""
        if self.local is not None:
            with self._temporary(name, content) as temporary:
                temporary.replace(self._join(name))
            return
        temporary_name = self._join(_temporary_name(name))
        try:
            self.filesystem.pipe_file(temporary_name, content)
            self.filesystem.mv(temporary_name, self._join(name))
        except BaseException:
            with suppress(OSError):
                self.filesystem.rm_file(temporary_name)
            raise

    @contextmanager
    def _temporary(self, name: str, content: bytes) -> Iterator[Path]:
        """Yield a local file with this content, beside where it is to go; afterwards nothing is left of it."""
        path = Path(self._join(_temporary_name(name)))
        try:
            with path.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # on disk before it gets its name, so that a crash leaves no empty record
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _join(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"

    def _list(self) -> list[str]:
        self.filesystem.invalidate_cache(self.path)  # others write here too
        try:
            listing: list[Any] = self.filesystem.ls(self.path, detail=False)
        except FileNotFoundError:
            return []
        return [str(each) for each in listing]


def _put(source: Path, target: Path) -> None:
    """Give a file a second name, or where there are no hard links another one; never that of a file which exists."""
    try:
        os.link(source, target)  # unlike a rename, refuses to overwrite
    except FileExistsError:
        raise
    except OSError:  # a filesystem without hard links
        if target.exists():
            raise FileExistsError(target) from None
        source.replace(target)


def other_result(used: str) -> str:
    """Return why a record is passed over, beside one of the same trial."""
    return f"it differs from {used}, a record of the same trial, which is used; move one of them away"


def _names(trial_id: str) -> tuple[str, str]:
    """Return what a trial's record may be called; the first that is there counts."""
    return f"{trial_id}.json", f"{trial_id}.json.gz"


def _says(name: str, content: bytes, text: bytes) -> bool:
    """Return whether a file holds this text."""
    try:
        return plain(name, content) == text
    except RecordError:
        return False


def plain(name: str, content: bytes) -> bytes:
    """Return what a record's file says, unpacked where its name ends in ``.gz``.

    Raises:
        RecordError: It is not gzipped, or torn, or says that it is larger than any record.
    """
    if not name.endswith(".gz"):
        return content
    try:
        with gzip.open(io.BytesIO(content)) as file:
            text = file.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise RecordError(f"cannot be unpacked: {error}") from error
    if len(text) > MOST_BYTES:
        raise RecordError(f"unpacks to more than {MOST_BYTES:,} bytes")
    return text


def _temporary_name(name: str) -> str:
    """Return a name for what is not whole yet, which says whose it is."""
    return f"{name}.{this_machine()}.{this_process()}.{uuid.uuid4().hex}.tmp"


def _after(before: Record | None, record: Record) -> Record:
    """Return a record that remembers the try before it."""
    return record if before is None else replace(record, attempts=[*before.attempts, before.attempt])
