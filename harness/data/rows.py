"""Rows of a file exactly as they are written: no type is guessed, so text stays text, and every row has its place.

JSON says itself what is a number. CSV and TSV do not, so all that they hold is text: ``null``, ``NA``, ``007`` and
dates stay as they are. Parquet and Arrow have a schema, which counts. What cannot be read is refused with file and
line: broken encodings, rows with too few or too many fields, cut-off JSON.

What is not here: which files a table has (``tables``), what columns mean (``own``).
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from harness.errors import DataError

ENDINGS = {
    ".jsonl": "json",
    ".jsonl.gz": "json",
    ".json": "json",
    ".json.gz": "json",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".tsv": "tsv",
    ".tsv.gz": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".raw": "text",
    ".txt": "text",
}
DELIMITERS = {"csv": ",", "tsv": "\t"}
OTHER_DELIMITERS = "\t;|,"  # that other programs write
LONGEST_FIELD = 2**31 - 1  # characters; Python's own limit is 131,072, shorter than some documents


class PlacedRow(NamedTuple):
    """A row and where it stands: ``line 7`` of a text file, ``row 7`` of one with a schema; the first is 1."""

    place: str
    values: Mapping[str, Any]


def file_kind(path: Path) -> str | None:
    """Return which kind of file a name's ending says, ``None`` where it says nothing known."""
    return next((kind for ending, kind in ENDINGS.items() if path.name.endswith(ending)), None)


def placed_rows(path: Path) -> Iterator[PlacedRow]:
    """Yield the rows of a file with their places.

    Raises:
        DataError: The file cannot be read as what its name says; the message has file, line and value.
    """
    kind = file_kind(path)
    if kind is None:
        raise DataError(f"data: {path} has no known ending; known: {', '.join(ENDINGS)}")
    if kind in ("parquet", "arrow"):
        yield from _with_schema(path, kind)
    elif kind == "json":
        yield from _json(path)
    elif kind == "text":
        yield from (PlacedRow(f"line {number}", {"text": line}) for number, line in _lines(path))
    else:
        yield from _delimited(path, DELIMITERS[kind])


def uniform_rows(paths: Sequence[Path]) -> list[Mapping[str, Any]]:
    """Return the rows of files, each with every column that any has: ``None`` where a row lacks it."""
    rows = [row.values for path in paths for row in placed_rows(path)]
    if not rows:
        raise DataError(f"data: {', '.join(map(str, paths))} holds no rows; put the table there")
    columns = dict.fromkeys(name for row in rows for name in row)
    return [row if len(row) == len(columns) else {name: row.get(name) for name in columns} for row in rows]


def class_names(path: Path, column: str) -> list[str] | None:
    """Return the names that a file's own schema gives to the numbers of a column of classes; ``None``: no names."""
    if file_kind(path) not in ("parquet", "arrow"):
        return None
    metadata = _schema(path).metadata or {}
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    feature = features.get(column, {})
    return list(feature["names"]) if feature.get("_type") == "ClassLabel" else None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield numbered lines with their ends, decoded from UTF-8 (with or without a byte order mark)."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                try:
                    yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"data: {path}, line {number}: byte {raw[error.start]:#04x} after "
                        f"{raw[max(0, error.start - 20) : error.start].decode('utf-8', 'replace')!r} is not UTF-8; "
                        "save the file as UTF-8"
                    ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"data: {path} cannot be read: {error}; put a whole copy there") from error


def _json(path: Path) -> Iterator[PlacedRow]:
    lines = _lines(path)
    first = next(((number, line) for number, line in lines if line.strip()), None)
    if first is None:
        return
    if first[1].lstrip().startswith("["):
        text = first[1] + "".join(line for _, line in lines)
        for number, value in enumerate(_parse(text, path, f"the list that begins in line {first[0]}"), 1):
            yield PlacedRow(f"row {number}", _object(value, path, f"row {number}"))
        return
    for number, line in chain([first], lines):
        if line.strip():
            yield PlacedRow(f"line {number}", _object(_parse(line, path, f"line {number}"), path, f"line {number}"))


def _parse(text: str, path: Path, place: str) -> Any:
    def refuse(word: str) -> NoReturn:
        raise DataError(f"data: {path}, {place}: {word} is no JSON value; write null, or leave the row out")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"data: {path}, {place}: {twice!r} is there twice in one object; keep one of them")
        return found

    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise DataError(
            f"data: {path} cannot be read as json: {place}: {error.msg} at character {error.pos + 1}, "
            f"after {text[max(0, error.pos - 30) : error.pos]!r}; write one JSON object a line"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of too many digits, a nest
        raise DataError(f"data: {path}, {place}: {error}; write values that a table can hold") from error


def _object(value: Any, path: Path, place: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"data: {path}, {place}: {value!r:.60} is no JSON object; write {{column: value, ...}}")
    return value


def _delimited(path: Path, delimiter: str) -> Iterator[PlacedRow]:
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    begins = 1
    try:
        for fields in reader:
            place, begins = f"line {begins}", reader.line_num + 1
            if not fields:
                continue  # an empty line
            if header is None:
                header = fields
                others = [each for each in OTHER_DELIMITERS if len(header) == 1 and each in header[0]]
                if others:
                    raise DataError(
                        f"data: {path}, {place}: the header is one field, {header[0]!r:.60}; it looks as if "
                        f"{others[0]!r} separates fields, and in such a file {delimiter!r} does"
                    )
                if twice := [name for name in header if header.count(name) > 1]:
                    raise DataError(f"data: {path}, {place}: two columns are called {twice[0]!r}; rename one")
                continue
            if len(fields) != len(header):
                raise DataError(
                    f"data: {path}, {place}: {len(fields)} fields, beginning with {fields[0]!r:.60}, where the header "
                    f"has {len(header)} ({', '.join(header)}); quote texts that hold {delimiter!r} or line breaks"
                )
            yield PlacedRow(place, dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        raise DataError(f"data: {path}, line {reader.line_num}: {error}; quote texts as CSV wants it") from error


def _schema(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file_kind(path) == "parquet":
        return pq.read_schema(path)
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_stream(source).schema


def _with_schema(path: Path, kind: str) -> Iterator[PlacedRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        if kind == "parquet":
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches():
                    for values in batch.to_pylist():
                        number += 1
                        yield PlacedRow(f"row {number}", values)
        else:
            with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
                for batch in stream:
                    for values in batch.to_pylist():
                        number += 1
                        yield PlacedRow(f"row {number}", values)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"data: {path} cannot be read as {kind}: {str(error).splitlines()[0]}") from error
