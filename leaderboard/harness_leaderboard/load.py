"""Read the records of a result root. Reading only: nothing here judges what a record says."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

import fsspec

from harness.contract.record import Record
from harness.errors import RecordError

SHOWN_PROBLEMS = 10


def load_records(root: str) -> list[Record]:
    """Return every record directly under ``root``, in order of trial id.

    Args:
        root: A local folder or an fsspec URL. Its ``*.json`` files are records; sub-folders, other files and
            names that start with a dot (half-written files) are ignored.

    Raises:
        RecordError: ``root`` is not a folder, or files in it are not records. All of them are named, since a
            page that leaves a record out without a word is wrong.
    """
    filesystem, folder = fsspec.core.url_to_fs(root)
    if not filesystem.isdir(folder):
        raise RecordError(
            f"no folder of records at {root!r}: run `harness run` first, or name the folder that it wrote"
        )
    entries = filesystem.ls(folder, detail=True)
    paths = sorted(entry["name"] for entry in entries if entry["type"] == "file" and _is_record_name(entry["name"]))
    contents = filesystem.cat(paths, on_error="return") if paths else {}
    records, problems = [], []
    for path in paths:
        try:
            records.append(_read(path, contents[path]))
        except RecordError as error:
            problems.append(f"{path}: {error}")
    if problems:
        hidden = len(problems) - SHOWN_PROBLEMS
        more = [f"... and {hidden} more"] if hidden > 0 else []
        listed = "\n  ".join([*problems[:SHOWN_PROBLEMS], *more])
        raise RecordError(
            f"{len(problems)} of {len(paths)} files in {root!r} cannot be read:\n  {listed}\n"
            "move them to another folder and run their trials again"
        )
    return sorted(records, key=lambda record: record.trial_id)


def _is_record_name(path: str) -> bool:
    name = PurePosixPath(path).name
    return name.endswith(".json") and not name.startswith(".")


def _read(path: str, content: bytes | Exception) -> Record:
    """Return the record that ``content`` holds; every way of failing is a :class:`RecordError`."""
    if isinstance(content, Exception):
        raise RecordError(f"reading failed: {content}") from content
    try:
        data = json.loads(content, parse_constant=_refuse_constant)
    except ValueError as error:  # also UnicodeDecodeError
        raise RecordError(f"not JSON: {error}") from error
    if not isinstance(data, dict):
        raise RecordError(f"holds a {type(data).__name__}, not a record")
    try:
        record = Record.from_json(data)
    except (TypeError, AttributeError) as error:
        raise RecordError(f"not a record: {error}") from error
    stem = PurePosixPath(path).stem
    if stem != record.trial_id:
        raise RecordError(f"holds trial {record.trial_id}, which is not its name: it was renamed")
    return record


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number in JSON")
