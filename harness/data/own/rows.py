"""The rows of a user's tables, each value checked: refused with file, row and value before anything trains.

Nothing is changed: no text is stripped, no label rounded, no row dropped without a word.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.contract.task import Table
from harness.data.own.columns import DataKind
from harness.data.rows import class_names, placed_rows
from harness.data.tables import local_files, read_table
from harness.errors import DataError

MOST_NAMED = 5  # refused rows that a message names
SPEAKERS = {"human": "user", "gpt": "assistant"}  # ShareGPT's words for roles; its columns are "from" and "value"
SPEAKING = ("system", "user", "assistant")


class OwnRow(NamedTuple):
    """One checked row.

    Attributes:
        place: File and line, for messages.
        texts: Of a classification or plain text: the text, or the pair.
        turns: Of instructions: (role, content) of every turn; the last one is the assistant's.
        label: Of a classification, as text.
    """

    place: str
    texts: tuple[str, ...] = ()
    turns: tuple[tuple[str, str], ...] = ()
    label: str = ""

    @property
    def key(self) -> str:
        """Return a hash of what the model is given, without what it shall answer; case and spaces do not count."""
        given = self.texts or tuple(text for turn in self.turns[:-1] for text in turn)
        return hashlib.sha256("\0".join(" ".join(text.lower().split()) for text in given).encode()).hexdigest()


def columns_of(table: Table, data_dir: Path | None) -> list[str]:
    """Return the columns of a table, in order of appearance; of a local one all rows are looked at."""
    columns: dict[str, None] = {}
    for _, values in _raw_rows(table, data_dir):
        columns.update(dict.fromkeys(values))
    if not columns:
        raise DataError(f"data: {table.source.folder or table.source.hub_id} holds no rows")
    return list(columns)


def read_own_rows(
    table: Table, data_dir: Path | None, kind: DataKind, roles: Mapping[str, str], labels: Sequence[str] = ()
) -> list[OwnRow]:
    """Return the rows of a table.

    Args:
        table: Where it is.
        data_dir: Of local tables.
        kind: What it is for.
        roles: Column of each role.
        labels: All that there may be; empty: whatever the rows say.

    Raises:
        DataError: Rows that are not what they should be, the first few by name.
    """
    rows: list[OwnRow] = []
    problems: list[str] = []
    names = _names_of_classes(table, data_dir, roles.get("label", ""))
    for place, values in _raw_rows(table, data_dir):
        try:
            rows.append(_check(place, values, kind, roles, names, labels))
        except _Refused as refusal:
            problems.append(f"{place}: {refusal}")
    if problems:
        more = f"\n... and {len(problems) - MOST_NAMED} more" if len(problems) > MOST_NAMED else ""
        raise DataError("data: " + "\n".join(problems[:MOST_NAMED]) + more)
    if not rows:
        raise DataError(f"data: {table.source.folder or table.source.hub_id} holds no rows")
    return rows


class _Refused(Exception):
    """A value is not what it should be."""


def _raw_rows(table: Table, data_dir: Path | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    files = local_files(table.source, table.split, data_dir)
    for path in files:
        for row in placed_rows(path):
            if (
                "text" not in row.values
                or len(row.values) > 1
                or str(row.values["text"]).strip()
                or not _is_plain(path)
            ):
                yield f"{path}, {row.place}", row.values
    if not files:
        name = f"{table.source.hub_id}, split {table.split}"
        for number, values in enumerate(read_table(table.source, table.split, data_dir), 1):
            yield f"{name}, row {number}", values


def _is_plain(path: Path) -> bool:
    """Return whether a file is plain text, whose empty lines separate and are no rows."""
    return path.suffix in (".txt", ".raw")


def _names_of_classes(table: Table, data_dir: Path | None, column: str) -> list[str] | None:
    if not column:
        return None
    files = local_files(table.source, table.split, data_dir)
    if files:
        return class_names(files[0], column)
    feature = read_table(table.source, table.split, data_dir).features.get(column)
    return list(feature.names) if hasattr(feature, "names") else None


def _check(
    place: str, values: Mapping[str, Any], kind: DataKind, roles: Mapping[str, str], names: Sequence[str] | None,
    labels: Sequence[str],
) -> OwnRow:  # fmt: skip
    def text(role: str, needed: bool = True) -> str:
        return _text(values.get(roles[role]), f"{role} (column {roles[role]!r})", needed) if role in roles else ""

    if kind is DataKind.TEXT:
        return OwnRow(place, texts=(text("text"),))
    if kind is DataKind.CLASSIFICATION:
        texts = (text("text"), text("text_pair")) if "text_pair" in roles else (text("text"),)
        label = _label(values.get(roles["label"]), f"label (column {roles['label']!r})", names)
        if labels and label not in labels:
            raise _Refused(f"label {label!r} is none of {', '.join(labels)}; correct it, or declare it with --labels")
        return OwnRow(place, texts=texts, label=label)
    if "messages" in roles:
        return OwnRow(place, turns=_turns(values.get(roles["messages"]), roles["messages"]))
    prompt = text("prompt")
    if given := text("input", needed=False):
        prompt = f"{prompt}\n\n{given}"
    system = text("system", needed=False)
    start = (("system", system),) if system.strip() else ()
    return OwnRow(place, turns=(*start, ("user", prompt), ("assistant", text("response"))))


def _text(value: Any, what: str, needed: bool = True) -> str:
    if value is None and not needed:
        return ""
    if value is None:
        raise _Refused(f"{what} is missing; give it, or leave the row out")
    if not isinstance(value, str):
        raise _Refused(f"{what} is {value!r:.60}, of type {type(value).__name__}; write it as text, in quotes")
    if needed and not value.strip():
        raise _Refused(f"{what} is {value!r}, an empty text; give it, or leave the row out")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _Refused(f"{what} has {value[error.start]!r}, half of a character; repair its encoding") from error
    return value


def _label(value: Any, what: str, names: Sequence[str] | None) -> str:
    if isinstance(value, float):
        raise _Refused(f"{what} is {value!r}, a fraction; labels are texts, whole numbers or true and false")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        if names is None:
            return str(value)
        if not 0 <= value < len(names):
            raise _Refused(f"{what} is {value}, and the table's classes are 0 to {len(names) - 1}; give its class")
        return names[value]
    return _text(value, what)


def _turns(value: Any, column: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise _Refused(f"column {column!r} is {value!r:.60}; write a list of {{role, content}}")
    turns: list[tuple[str, str]] = []
    for number, each in enumerate(value, 1):
        what = f"turn {number} of column {column!r}"
        if not isinstance(each, Mapping):
            raise _Refused(f"{what} is {each!r:.60}; write {{role, content}}")
        role = each.get("role", each.get("from"))
        role = SPEAKERS.get(role, role) if isinstance(role, str) else role
        if role not in SPEAKING:
            raise _Refused(f"{what} has role {role!r}; roles are {', '.join(SPEAKING)}")
        if role == "system" and turns:
            raise _Refused(f"{what} is the system's; it must come first")
        if turns and turns[-1][0] == role:
            raise _Refused(f"{what} is the {role}'s, as is the one before it; join the two")
        turns.append((role, _text(each.get("content", each.get("value")), f"{what}, the {role}'s,")))
    if turns[-1][0] != "assistant":
        raise _Refused(f"column {column!r} ends with the {turns[-1][0]}'s turn; the last one must be the assistant's")
    if len(turns) < 2:
        raise _Refused(f"column {column!r} holds the assistant's turn alone; give what it answers")
    return tuple(turns)
