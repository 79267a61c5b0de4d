"""An index of the records of a result root: each file is read and checked once, its heavy fields only when asked for.

<root>/.index.sqlite      one row per record file: its name, age and size, its light fields, and its heavy ones packed

The index is a view like others: it may be deleted at any time. Where it cannot be written (a read-only folder, a URL,
another command that holds it), the same is done in memory, and the next command reads the files again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, overload

from harness.contract.record import SCHEMA_VERSION, Record, State, loads
from harness.contract.trial import Trial
from harness.errors import RecordError, UsageError
from harness.results.store import RECORD_NAME, Store, other_result, plain

FILE = ".index.sqlite"
VERSION = f"2.{SCHEMA_VERSION}"  # of the tables; another one's are made anew
HEAVY = ("items", "history")
SHARED = ("environment", "metric_details", "paper_recipe", "published")  # equal in most records: kept once
BATCH = 256  # files read at once by a process: what is held in memory besides the result
PROCESSES = min(4, os.cpu_count() or 1)
MANY = 2000  # new files, from which on it pays to start processes
WAIT_SECONDS = 20.0  # for another command that writes the index
MOST_TOLD = 20  # files that are passed over, by name

log = logging.getLogger(__name__)

TABLES = """
CREATE TABLE files (
    name TEXT PRIMARY KEY, stamp TEXT NOT NULL, problem TEXT NOT NULL, mark TEXT NOT NULL, light TEXT NOT NULL
);
CREATE TABLE heavy (name TEXT NOT NULL, field TEXT NOT NULL, content BLOB NOT NULL, PRIMARY KEY (name, field));
CREATE TABLE shared (number INTEGER PRIMARY KEY, content TEXT NOT NULL UNIQUE);
"""


class Index:
    """The records of one result root.

    Attributes:
        store: The result root.
        files: By trial id, the name of its record's file. Known once :meth:`records` was called.
        marks: By trial id, a hash of what its file holds, unpacked. Known once :meth:`records` was called.
        problems: Files among the records that are passed over: ``{path: why}``. Known once :meth:`records` was called.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.files: dict[str, str] = {}
        self.marks: dict[str, str] = {}
        self.problems: dict[str, str] = {}
        self._connection = self._open()
        self._pool: ProcessPoolExecutor | None = None

    def close(self) -> None:
        """Close the database. Heavy fields cannot be read afterwards."""
        self._connection.close()

    def records(self) -> list[Record]:
        """Return every record in order of trial id. ``items`` and ``history`` are read when they are looked at."""
        found = listing(self.store)
        try:
            self._update(found)
        except sqlite3.Error as error:  # full, read-only, held for long, or broken: never a reason to show nothing
            log.info("%s: %s; reading without it", self._where, error)
            self._connection.close()
            self._connection = _connect(":memory:")
            self._update(found)
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        shared = {
            number: json.loads(content)
            for number, content in self._connection.execute("SELECT number, content FROM shared")
        }
        records = []
        self.files, self.marks, self.problems = {}, {}, {}
        rows = self._connection.execute("SELECT name, problem, mark, light FROM files ORDER BY name")
        for name, problem, mark, light in rows:  # a plain file comes before a gzipped one of the same trial
            trial_id = name.partition(".")[0]
            if name not in found:
                continue
            if problem:
                self.problems[self.place(name)] = problem
            elif trial_id not in self.files:
                records.append(self._record(name, json.loads(light), shared))
                self.files[trial_id], self.marks[trial_id] = name, mark
            elif mark != self.marks[trial_id]:
                self.problems[self.place(name)] = other_result(self.place(self.files[trial_id]))
        return records  # in order: a file's name is its trial's id

    def place(self, name: str) -> str:
        """Return what to call a file of the root."""
        return f"{self.store.root.rstrip('/')}/{name}"

    def heavy(self, name: str, field: str) -> Any:
        """Return a heavy field of a record, by the record's file name."""
        row = self._connection.execute(
            "SELECT content FROM heavy WHERE name = ? AND field = ?", (name, field)
        ).fetchone()
        if row is None:
            raise RecordError(
                f"{self.store.root}/{name} has gone from the index while it was read; run the command again"
            )
        return json.loads(zlib.decompress(row[0]))

    @property
    def _where(self) -> str:
        return f"{self.store.root.rstrip('/')}/{FILE}"

    def _open(self) -> sqlite3.Connection:
        folder = self.store.local
        if folder is None or not folder.is_dir():
            return _connect(":memory:")
        path = folder / FILE
        for _ in range(2):
            try:
                return _connect(str(path))
            except sqlite3.DatabaseError as error:
                log.info("%s: %s; made anew", path, error)
                if isinstance(error, sqlite3.OperationalError):  # locked or read-only: not ours to delete
                    break
                path.unlink(missing_ok=True)
        return _connect(":memory:")

    def _update(self, found: Mapping[str, str]) -> None:
        connection = self._connection
        known = dict(connection.execute("SELECT name, stamp FROM files"))
        gone = [(name,) for name in known if found.get(name) != known[name]]
        new = sorted(name for name in found if found[name] != known.get(name))
        if not gone and not new:
            return
        with connection:
            connection.executemany("DELETE FROM files WHERE name = ?", gone)
            connection.executemany("DELETE FROM heavy WHERE name = ?", gone)
        for start in range(0, len(new), BATCH * PROCESSES):
            names = new[start : start + BATCH * PROCESSES]
            with connection:
                for name, packed in zip(names, self._packed(names, len(new)), strict=True):
                    self._insert(name, found[name], packed)

    def _packed(self, names: Sequence[str], count: int) -> Iterable[Packed]:
        """Return what the index keeps of some files; where there are many in all, several processes read them."""
        folder = self.store.local
        if folder is None:
            paths = [f"{self.store.path.rstrip('/')}/{name}" for name in names]
            contents = self.store.filesystem.cat(paths, on_error="return")
            return [_pack(name, contents[path]) for name, path in zip(names, paths, strict=True)]
        files = [folder / name for name in names]
        if count < MANY:
            return map(_pack_file, files)
        if self._pool is None:
            self._pool = ProcessPoolExecutor(PROCESSES, get_context("spawn"))
        return self._pool.map(_pack_file, files, chunksize=32)

    def _insert(self, name: str, stamp: str, packed: Packed) -> None:
        body = dict(packed.light)
        for field, content in packed.heavy.items():
            self._connection.execute("INSERT OR REPLACE INTO heavy VALUES (?, ?, ?)", (name, field, content))
        for field, text in packed.shared.items():
            body[field] = self._share(text)
        light = json.dumps(body, separators=(",", ":")) if body else ""
        row = (name, stamp, packed.problem, packed.mark, light)
        self._connection.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", row)

    def _share(self, content: str) -> int:
        self._connection.execute("INSERT OR IGNORE INTO shared (content) VALUES (?)", (content,))
        number = self._connection.execute("SELECT number FROM shared WHERE content = ?", (content,)).fetchone()[0]
        return int(number)

    def _record(self, name: str, light: dict[str, Any], shared: Mapping[int, Any]) -> Record:
        trial = Trial.from_json(light.pop("trial"))
        body = {**light, **{field: shared[light[field]] for field in SHARED}}
        return Record(
            **{
                **body,
                "trial": trial,
                "state": State(light["state"]),
                "items": LazyMapping(self, name, "items"),
                "history": LazySequence(self, name, "history"),
            }
        )


def listing(store: Store) -> dict[str, str]:
    """Return what may be a record in a result root, by name, and what changes when its content does."""
    store.filesystem.invalidate_cache(store.path)
    found = {}
    for entry in store.filesystem.ls(store.path, detail=True):
        name = PurePosixPath(entry["name"]).name
        if entry["type"] == "file" and name.endswith((".json", ".json.gz")) and not name.startswith("."):
            stamp = [entry.get(key) for key in ("size", "mtime", "ino", "LastModified", "etag", "ETag", "created")]
            found[name] = json.dumps(stamp, default=str)
    return found


def read_all(store: Store) -> list[Record]:
    """Return every record of a result root in order of trial id, through its index: each file is read and checked once.

    Files that are no records, and second records of a trial, are passed over and warned of.
    """
    if not store.filesystem.isdir(store.path):
        return []
    index = Index(store)
    records = index.records()
    tell(index.problems)
    return records


def read_root(root: str | Path) -> list[Record]:
    """Return the records of a result root, as ``read_all``.

    Raises:
        UsageError: There are none.
    """
    records = read_all(Store(str(root)))
    if not records:
        raise UsageError(f"no records in {str(root)!r}; run something first, or name the folder that a run wrote")
    return records


def tell(problems: Mapping[str, str]) -> None:
    """Warn of files that are passed over.

    Args:
        problems: Why, by what to call them.
    """
    for path, why in sorted(problems.items())[:MOST_TOLD]:
        log.warning("passed over: %s: %s", path, why)
    if len(problems) > MOST_TOLD:
        log.warning("passed over: %d more", len(problems) - MOST_TOLD)


class LazyMapping(Mapping[str, Any]):
    """A heavy field that is an object, read each time it is looked at and not kept."""

    def __init__(self, index: Index, name: str, field: str) -> None:
        self._source = (index, name, field)

    def _read(self) -> dict[str, Any]:
        index, name, field = self._source
        content: dict[str, Any] = index.heavy(name, field)
        return content

    def __getitem__(self, key: str) -> Any:
        return self._read()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())


class LazySequence(Sequence[Mapping[str, Any]]):
    """A heavy field that is a list, read each time it is looked at and not kept: take it once."""

    def __init__(self, index: Index, name: str, field: str) -> None:
        self._source = (index, name, field)

    def _read(self) -> list[Mapping[str, Any]]:
        index, name, field = self._source
        content: list[Mapping[str, Any]] = index.heavy(name, field)
        return content

    @overload
    def __getitem__(self, place: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Mapping[str, Any]]: ...
    def __getitem__(self, place: int | slice) -> Any:
        return self._read()[place]

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())


def _connect(path: str) -> sqlite3.Connection:
    """Open an index, made anew where its tables are of another version."""
    connection = sqlite3.connect(path, timeout=WAIT_SECONDS, check_same_thread=False)
    try:
        with connection:
            connection.execute("CREATE TABLE IF NOT EXISTS about (version TEXT)")
            versions = [row[0] for row in connection.execute("SELECT version FROM about")]
            if versions != [VERSION]:
                for table in ("files", "heavy", "shared", "about"):
                    connection.execute(f"DROP TABLE IF EXISTS {table}")
                connection.execute("CREATE TABLE about (version TEXT)")
                connection.execute("INSERT INTO about VALUES (?)", (VERSION,))
                for statement in filter(None, map(str.strip, TABLES.split(";"))):
                    connection.execute(statement)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


class Packed(NamedTuple):
    """What the index keeps of one file.

    Attributes:
        problem: Why it is no record; empty: it is one.
        mark: A hash of what it holds.
        light: Its light fields.
        heavy: Its heavy fields, packed.
        shared: As text, fields that are equal in most records.
    """

    problem: str
    mark: str
    light: dict[str, Any]
    heavy: dict[str, bytes]
    shared: dict[str, str]


def _pack_file(path: Path) -> Packed:
    try:
        content: bytes | Exception = path.read_bytes()
    except OSError as error:
        content = error
    return _pack(path.name, content)


def _pack(name: str, content: bytes | Exception) -> Packed:
    try:
        record, mark = _read(name, content)
    except RecordError as error:
        return Packed(str(error), "", {}, {}, {})
    body = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    body |= {"trial": record.trial.to_json(), "state": record.state.value}
    heavy = {field: zlib.compress(json.dumps(body.pop(field), separators=(",", ":")).encode(), 1) for field in HEAVY}
    return Packed("", mark, body, heavy, {field: json.dumps(body.pop(field), sort_keys=True) for field in SHARED})


def _read(name: str, content: bytes | Exception) -> tuple[Record, str]:
    """Return the record that a file holds, and a hash of its text; every way of failing is a :class:`RecordError`."""
    if isinstance(content, Exception):
        raise RecordError(f"reading failed: {content}")
    text = plain(name, content)
    try:
        data = loads(text)
    except (ValueError, RecursionError) as error:  # also UnicodeDecodeError
        raise RecordError(f"not JSON: {error}") from error
    if not isinstance(data, dict) or "schema_version" not in data or "trial" not in data:
        raise RecordError("not a record: it has no trial and no schema_version")
    try:
        record = Record.from_json(data)
    except (TypeError, AttributeError) as error:
        raise RecordError(f"not a record: {error}") from error
    match = RECORD_NAME.fullmatch(name)
    if match is None or match[1] != record.trial_id:
        raise RecordError(f"holds trial {record.trial_id}, which is not its name: it was renamed")
    return record, hashlib.sha256(text).hexdigest()
