"""What ``harness data check`` says: which tables tasks read, which of them are there, and what to do about the others.

Nothing is downloaded. What is not here: reading tables (``tables``).
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from harness.contract.task import Table, Task
from harness.data.rows import file_kind
from harness.data.tables import hub_name, local_files, read_rows, require
from harness.errors import DataError


class Presence(StrEnum):
    """Whether a table is there."""

    HERE = "here"
    HUB = "on the hub (not fetched)"
    GENERATED = "generated"
    MISSING = "missing"
    BROKEN = "broken"


@dataclass(frozen=True)
class Finding:
    """What was found out about one table of a task.

    Attributes:
        task: Its name.
        table: Folder and split; empty for generated data.
        needed: Whether the task cannot run without it.
        presence: Whether it is there.
        rows: Of a local table.
        origin: Its files, or hub id and revision.
        licence: Of the data.
        advice: What to do where it is missing or broken.
    """

    task: str
    table: str
    needed: bool
    presence: Presence
    rows: int | None = None
    origin: str = ""
    advice: str = ""
    licence: str = ""

    @property
    def blocks(self) -> bool:
        """Return whether the task cannot run because of this table."""
        return self.needed and self.presence in (Presence.MISSING, Presence.BROKEN)


def check_data(tasks: Mapping[str, type[Task]], scale: str, data_dir: Path | None) -> list[Finding]:
    """Look for every table that tasks read.

    Args:
        tasks: By name.
        scale: Of the recipe; a task without it is asked about its first one.
        data_dir: Local tables, or ``None`` for the hub.
    """
    findings: list[Finding] = []
    known: dict[Table, Finding] = {}  # tasks share tables
    for name, kind in tasks.items():
        recipe = kind.recipes.get(scale) or next(iter(kind.recipes.values()))
        tables = kind().tables(recipe)
        if kind.source.is_generated or not tables:
            findings.append(Finding(name, "", True, Presence.GENERATED, licence=kind.source.licence))
        for table in dict.fromkeys(tables):
            if table not in known:
                known[table] = replace(_check(name, table, data_dir), licence=table.source.licence)
            findings.append(replace(known[table], task=name))
    return findings


def _check(task: str, table: Table, data_dir: Path | None) -> Finding:
    source, split = table.source, table.split
    name = f"{source.folder or source.hub_id}/{split}"
    try:
        require(source, [split], data_dir)
    except DataError as error:
        return Finding(task, name, table.needed, Presence.MISSING, advice=_advice(error))
    files = local_files(source, split, data_dir)
    if not files:
        return Finding(task, name, table.needed, Presence.HUB, origin=hub_name(source))
    origin = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    try:
        rows = _count_rows(table, files, data_dir)
    except DataError as error:
        return Finding(task, name, table.needed, Presence.BROKEN, None, origin, _advice(error))
    return Finding(task, name, table.needed, Presence.HERE, rows, origin)


def _count_rows(table: Table, files: Sequence[Path], data_dir: Path | None) -> int:
    """Return the rows of a local table. Lines are counted where a row is a line: a corpus may be too large to load."""
    if not files[0].name.endswith((".jsonl", ".jsonl.gz", ".json.gz", ".raw", ".txt")):
        return len(read_rows(table.source, table.split, data_dir))
    rows = 0
    for path in files:
        try:
            with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
                lines = (line for line in file if line.strip() or path.suffix in (".raw", ".txt"))
                first = next(lines, b"")
                if first.lstrip().startswith(b"[") and file_kind(path) == "json":  # one list
                    return len(read_rows(table.source, table.split, data_dir))
                rows += bool(first) + sum(1 for _ in lines)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"data: {path} cannot be read: {error}; put a whole copy there") from error
    if not rows:
        raise DataError(f"data: {files[0]} holds no rows; put the table there")
    return rows


def _advice(error: DataError) -> str:
    return str(error).removeprefix("data: ")


def findings_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Return findings as plain JSON types."""
    return [{**vars(each), "presence": each.presence.value} for each in findings]


def findings_table(findings: Sequence[Finding]) -> str:
    """Return findings as text: the tables, then what to do, then the verdict."""
    from tabulate import tabulate

    rows = [
        [
            each.task,
            each.table or "-",
            each.presence if each.needed else f"{each.presence}, optional",
            "" if each.rows is None else f"{each.rows:,}",
            each.origin,
            each.licence,
        ]
        for each in findings
    ]
    table = tabulate(rows, ["task", "table", "state", "rows", "from", "licence"], disable_numparse=True)
    advice = list(dict.fromkeys(each.advice for each in findings if each.advice))
    names = list(dict.fromkeys(each.task for each in findings))
    blocked = [name for name in names if any(each.blocks for each in findings if each.task == name)]
    verdict = f"{len(names) - len(blocked)} of {len(names)} tasks have all the data they need"
    without = [f"Without it: {', '.join(blocked)}"] if blocked else []
    return "\n".join([table, *(f"* {each}" for each in advice), verdict, *without])
