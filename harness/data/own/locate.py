"""Where a user's data is: a file, a folder of splits, a folder that ``datasets`` saved, or a data set on the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.contract.task import Source
from harness.data.hub import cached_commits, is_offline
from harness.data.own.columns import DataKind, find_columns, parse_columns
from harness.data.own.recipe import OwnRecipe
from harness.data.own.rows import columns_of, read_own_rows
from harness.data.own.splits import labels_of
from harness.data.rows import ENDINGS, file_kind
from harness.data.tables import local_files
from harness.errors import DataError, UsageError

SPLITS: Mapping[str, tuple[str, ...]] = {  # names that the world gives them
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test",),
}
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w.-]+)?(:[\w.-]+)?")


@dataclass(frozen=True)
class OwnData:
    """What was understood of a user's data.

    Attributes:
        title: A slug that names it, from the file's or folder's name.
        kind: What it is for.
        data_dir: The folder that its paths are relative to; ``None``: on the hub.
        fields: What a recipe must say of it, see ``OwnRecipe``.
        unused: Columns that nothing reads.
    """

    title: str
    kind: DataKind
    data_dir: Path | None
    fields: Mapping[str, Any]
    unused: tuple[str, ...] = ()

    def recipe(self) -> OwnRecipe:
        """Return a recipe that says no more than where the data is."""
        return OwnRecipe(steps=1, **self.fields)


def understand(where: str, columns: str = "", kind: str = "", labels: str = "") -> OwnData:
    """Return what a user's data is: its tables, its kind, its columns, its labels.

    Args:
        where: A file, a folder, or ``hub/id``, ``hub/id@revision``, ``hub/id:configuration``.
        columns: ``role=column,...``, where their names do not say it.
        kind: One of ``DataKind``, where columns allow more than one.
        labels: All labels, comma-separated, in the order of the model's outputs; empty: those that the rows have.

    Raises:
        DataError: There is nothing there, or it cannot be understood without a word from the user.
    """
    if kind and kind not in list(DataKind):
        raise UsageError(f"--data-kind {kind!r} is not known; give {', '.join(DataKind)}")
    if not where.strip():
        raise UsageError("the data's name is empty; give a file, a folder or a hub id")
    path = Path(where).expanduser()
    data_dir: Path | None
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise DataError(f"data: {where!r} is neither a file nor a folder; write what it gives to a file")
    if path.exists():
        absolute = path.resolve()
        data_dir, title = absolute.parent, path.name
        fields: dict[str, Any] = {"splits": _local_splits(absolute)}
    elif HUB_ID.fullmatch(where) and file_kind(path) is None:
        data_dir, fields, title = None, _hub_fields(where), re.sub("@[^:]*", "", path.name)  # without its revision
    else:
        raise DataError(f"data: there is no file or folder {where!r}; check the path")
    recipe = OwnRecipe(steps=1, **fields)
    tables = recipe.tables()
    first = tables.get("all") or tables["train"]
    there = columns_of(first, data_dir)
    found, roles = find_columns(there, parse_columns(columns), DataKind(kind) if kind else None, where)
    fields["columns"] = tuple(f"{role}={column}" for role, column in roles.items())
    if found is DataKind.CLASSIFICATION:
        if labels:
            fields["labels"] = tuple(each.strip() for each in labels.split(",") if each.strip())
            if len(set(fields["labels"])) < max(2, len(fields["labels"])):
                raise UsageError(f"--labels {labels!r}: give at least two, each once")
        else:
            fields["labels"] = labels_of(
                [row for table in tables.values() for row in read_own_rows(table, data_dir, found, roles)]
            )
    elif labels:
        raise UsageError(f"--labels {labels!r}: {where} is a table of {found}, which has no labels")
    unused = tuple(column for column in there if column not in roles.values())
    return OwnData(_slug(title), found, data_dir, fields, unused)


PART = "part"  # as Spark, Dask, DuckDB and others call the files of one table: part-00000-....parquet


def _slug(name: str) -> str:
    ending = next((each for each in ENDINGS if name.endswith(each)), "")
    return re.sub(r"[^a-z0-9]+", "-", name.removesuffix(ending).lower()).strip("-") or "data"


def _local_splits(path: Path) -> tuple[str, ...]:
    """Return where the splits are, relative to the path's parent: ``("train=reviews/train", ...)``."""
    if path.is_file():
        if file_kind(path) is None:
            raise DataError(f"data: {path} has no known ending; known: {', '.join(ENDINGS)}")
        return (f"all={path.name}",)
    if (path / "dataset_dict.json").is_file():
        try:
            names = list(map(str, json.loads((path / "dataset_dict.json").read_bytes())["splits"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"data: {path / 'dataset_dict.json'} does not say which splits there are ({type(error).__name__}: "
                f"{error}); write the folder again with save_to_disk"
            ) from error
        return _as_splits({name: f"{path.name}/{name}/data" for name in names}, str(path))
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        return (f"all={path.name}/data",)
    for folder in (path, path / "data"):
        relative = folder.relative_to(path.parent).as_posix()
        source = Source(folder=relative)
        named = {
            name: f"{relative}/{name}"
            for names in SPLITS.values()
            for name in names
            if local_files(source, name, path.parent)
        }
        if named:
            return _as_splits(named, str(path))
    files = sorted(each for each in path.iterdir() if each.is_file() and file_kind(each))
    if len(files) == 1:
        return (f"all={path.name}/{files[0].name}",)
    if files and local_files(Source(folder=path.name), PART, path.parent) == files:
        return (f"all={path.name}/{PART}",)
    there = ", ".join(sorted(each.name for each in path.iterdir())[:10]) or "nothing"
    raise DataError(
        f"data: {path} holds {there}; wanted: train.jsonl (or {', '.join(list(ENDINGS)[1:])}), and if there are any "
        "validation and test beside it; or give one file"
    )


def _as_splits(named: Mapping[str, str], where: str) -> tuple[str, ...]:
    """Return splits under our names for them.

    Raises:
        DataError: None trains, or two are the same to us.
    """
    found: dict[str, str] = {}
    for split, aliases in SPLITS.items():
        mine = [name for name in named if name in aliases]
        if len(mine) > 1:
            raise DataError(f"data: {where} has {' and '.join(mine)}, which are both {split}; take one away")
        if mine:
            found[split] = named[mine[0]]
    if "train" in found:
        return tuple(f"{split}={place}" for split, place in found.items())
    if len(named) == 1:
        return (f"all={next(iter(named.values()))}",)
    raise DataError(f"data: {where} has splits {', '.join(named)}, and no train; give the file that trains")


def _hub_fields(where: str) -> dict[str, Any]:
    """Return what a recipe must say of a data set on the hub, its revision pinned."""
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    name, _, config = where.partition(":")
    hub_id, _, revision = name.partition("@")
    cached = cached_commits(hub_id, revision) if is_offline() else []
    if is_offline() and len(cached) != 1:
        there = "holds none of it; give a local copy"
        if cached:
            there = f"holds several commits of it, {', '.join(cached)}; name one: {hub_id}@{cached[0]}"
        raise DataError(
            f"data: there is no file or folder {where!r}, the hub is not to be reached, and its cache {there}"
        )
    try:
        commit = cached[0] if cached else HfApi().dataset_info(hub_id, revision=revision or None).sha or ""
        configs = datasets.get_dataset_config_names(hub_id, revision=commit)
        if not config and len(configs) > 1:
            raise DataError(
                f"data: {hub_id!r} has configurations {', '.join(configs)}; give one: {hub_id}:{configs[0]}"
            )
        splits = datasets.get_dataset_split_names(hub_id, config or configs[0], revision=commit)
    except (OSError, ValueError, HfHubHTTPError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"data: there is no file or folder {where!r}, and as a data set of the hub it cannot be had: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return {
        "hub_id": hub_id,
        "hub_config": config,
        "hub_revision": commit,
        "splits": _as_splits({name: name for name in splits}, hub_id),
    }
