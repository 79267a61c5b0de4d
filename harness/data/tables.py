"""Data sets: from the Hugging Face hub at a pinned revision, or the same tables from a local folder. Nothing else.

A local table is ``<data dir>/<folder>/<split>.jsonl`` (or another of ``ENDINGS``), or shards of one of these, named
``<split>-00000...`` or ``NAME-<split>.00000...``; where there are several kinds, the first counts. A plain text file
(``.raw``) is a table with a row ``text`` per line. A folder in the place of which there is a file means that file.
Local rows are read as they are written (``rows``); the hub's go through the ``datasets`` library and its cache.

What is not here: a report on what is there and what is missing (``check``).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from harness.contract.task import Source, Table
from harness.data.hub import is_offline
from harness.data.rows import ENDINGS, uniform_rows
from harness.errors import DataError

COMMIT = re.compile("[0-9a-f]{40}")


def local_files(source: Source, split: str, data_dir: Path | None) -> list[Path]:
    """Return the files of a split below the data folder, sorted; empty where there are none.

    Raises:
        DataError: There are files of two endings, and nothing says which one is meant.
    """
    if data_dir is None or not source.folder:
        return []
    folder = data_dir / source.folder
    if folder.is_file():
        return [folder]
    several = [found for ending in ENDINGS if (found := _of_ending(folder, split, ending))]
    if len(several) > 1:
        names = " and ".join(found[0].name for found in several)
        raise DataError(f"data: {folder} holds {names}, which are both {split}; take one away")
    return several[0] if several else []


def _of_ending(folder: Path, split: str, ending: str) -> list[Path]:
    whole = folder / f"{split}{ending}"
    if whole.is_file():
        return [whole]
    found = (sorted(folder.glob(shards)) for shards in (f"{split}-[0-9]*{ending}", f"*-{split}.[0-9]*{ending}"))
    return next(filter(None, found), [])


def require(source: Source, splits: Sequence[str], data_dir: Path | None) -> None:
    """Check that every split can be read.

    Raises:
        DataError: naming the file that is missing, the hub id, and what to do.
    """
    for split in splits:
        if local_files(source, split, data_dir):
            continue
        is_file = any(source.folder.endswith(each) for each in ENDINGS)  # a user's own, not a folder of splits
        parts = [str(data_dir or "<data dir>"), source.folder, "" if is_file else f"{split}.jsonl(.gz)"]
        wanted = "/".join(filter(None, parts))
        if data_dir is not None:
            hub = f", or leave --data-dir out to use {hub_name(source)}" if source.hub_id else ""
            raise DataError(f"data: there is no {wanted}; put the table there{hub}")
        if not source.hub_id:
            raise DataError(f"data: this table is not on the hub; give --data-dir (or HARNESS_DATA_DIR) with {wanted}")
        if is_offline() and not _is_cached(source):
            raise DataError(f"data: offline, so {hub_name(source)} cannot be had; give --data-dir with {wanted}")


def identify(source: Source, splits: Sequence[str], data_dir: Path | None) -> str:
    """Return what identifies these tables: ``sha256:...`` of local files, or hub id, config and revision.

    Raises:
        DataError: A table is not there.
    """
    require(source, splits, data_dir)
    files = [path for split in splits for path in local_files(source, split, data_dir)]
    if files:
        digest = hashlib.sha256()
        for path in files:
            digest.update(path.name.encode() + _file_hash(path, path.stat().st_mtime_ns).encode())
        return f"sha256:{digest.hexdigest()[:16]}"
    return _hub_identity(source)


def _hub_identity(source: Source) -> str:
    return f"{source.hub_id}/{source.config}@{source.revision}"


def identify_tables(tables: Sequence[Table], data_dir: Path | None) -> str:
    """Return what identifies all tables of a task: ``folder identity; ...``, or ``generated`` where there are none.

    A table that is not needed counts where it is there, so that results with and without it are told apart.

    Raises:
        DataError: A needed table is not there.
    """
    splits: dict[Source, list[str]] = {}
    for table in tables:
        there = local_files(table.source, table.split, data_dir) or (data_dir is None and table.source.hub_id)
        if table.needed or there:
            splits.setdefault(table.source, []).append(table.split)
    needed = {table.source for table in tables if table.needed}
    found = []
    for source, names in splits.items():
        # Whether the hub answers decides nothing about a table that is not needed: a plan must not depend on it.
        identity = identify(source, names, data_dir) if source in needed or data_dir else _hub_identity(source)
        found.append(f"{source.folder or source.hub_id} {identity}")
    return "; ".join(found) or "generated"


def read_table(source: Source, split: str, data_dir: Path | None, hub_split: str | None = None) -> Any:
    """Return a split as a ``datasets.Dataset``; a local one is held in memory.

    Args:
        source: Hub id with pinned revision, and the folder of the same tables.
        split: Name of the local file, and of the hub's split unless ``hub_split`` is given.
        data_dir: Local folder, or ``None`` for the hub.
        hub_split: The hub's name of the split.

    Raises:
        DataError: It is not there, locally or on the hub.
    """
    import datasets

    require(source, [split], data_dir)
    if files := local_files(source, split, data_dir):
        try:
            return datasets.Dataset.from_list(uniform_rows(files))
        except (ValueError, TypeError, OverflowError) as error:  # of pyarrow: a column that holds several types
            reason = str(error).splitlines()[0]
            raise DataError(
                f"data: {', '.join(map(str, files))}: {reason}; give each column one type, or read the rows as they "
                "are with read_rows"
            ) from error
    try:
        found = datasets.load_dataset(
            source.hub_id, source.config or None, revision=source.revision, split=hub_split or split
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"data: {hub_name(source)}, split {hub_split or split!r}, cannot be had: {str(error).splitlines()[0]}. "
            f"Check the network, or give --data-dir with {source.folder}/{split}.jsonl(.gz)"
        ) from error
    if is_offline():
        _check_commit(found, source)
    return found


def _check_commit(table: Any, source: Source) -> None:
    """Refuse rows of another commit, which ``datasets`` takes from its cache where the hub is not to be reached."""
    folders = {Path(each["filename"]).parent.name for each in table.cache_files}
    if COMMIT.fullmatch(source.revision) and folders != {source.revision}:
        raise DataError(
            f"data: {hub_name(source)}: the hub is not to be reached, and what is cached here is of another commit, "
            f"{', '.join(sorted(folders))}; load that one with the network once, or give --data-dir"
        )


def read_rows(
    source: Source, split: str, data_dir: Path | None, hub_split: str | None = None
) -> list[Mapping[str, Any]]:
    """Return a split as plain rows, values as they are written; for tables that fit in memory."""
    require(source, [split], data_dir)
    if files := local_files(source, split, data_dir):
        return uniform_rows(files)
    return list(read_table(source, split, data_dir, hub_split))


def hub_name(source: Source) -> str:
    """Return the hub data set with configuration and revision, in words."""
    config = f", configuration {source.config!r}" if source.config else ""
    return f"{source.hub_id!r}{config} at {source.revision or 'no pinned revision'}"


def _is_cached(source: Source) -> bool:
    """Return whether the hub's local cache has this revision of a data set."""
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(source.hub_id, repo_type="dataset", revision=source.revision or None, local_files_only=True)
    except FileNotFoundError:
        return False
    return True


@cache
def _file_hash(path: Path, modified: int) -> str:
    del modified  # part of the key, so that a changed file is hashed again
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
