"""Read the records of result roots. Reading only: nothing here judges what a record says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from harness.contract.record import Record
from harness.errors import UsageError
from harness.results.catalogue import Catalogue, read_catalogue
from harness.results.index import Index
from harness.results.store import Store


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What there is to show.

    Attributes:
        records: By trial id, each trial once.
        passed_over: Files among the records that are none, and why.
        catalogue: What the methods and tasks say about themselves.
        places: By trial id, where its record is: the result root, and the file's name there.
    """

    records: tuple[Record, ...]
    passed_over: dict[str, str]
    catalogue: Catalogue
    places: dict[str, tuple[str, str]]


def load(roots: Sequence[str]) -> Loaded:
    """Return the records of some result roots, which may have trials in common.

    Of a trial that several roots have, a final record comes before one that says something about its run alone, then
    that of the first root.

    Args:
        roots: Local folders or fsspec URLs. The ``*.json`` and ``*.json.gz`` files directly in them are records; other
            files and names that start with a dot (half-written files) are ignored. A folder that holds none is one of
            result roots, and its folders that do are read.

    Raises:
        UsageError: A root is not a folder.
    """
    found: dict[str, Record] = {}
    where: dict[str, tuple[str, str]] = {}
    passed_over: dict[str, str] = {}
    catalogue: Catalogue = {"methods": {}, "tasks": {}}
    for store in (each for root in roots for each in _stores(root)):
        index = Index(store)
        for record in index.records():
            known = found.get(record.trial_id)
            if known is None or (record.state.is_final and not known.state.is_final):
                found[record.trial_id], where[record.trial_id] = (
                    record,
                    (store.root, index.files[record.trial_id]),
                )
        passed_over |= index.problems
        for kind, by_name in read_catalogue(store).items():
            catalogue[kind] = {**by_name, **catalogue[kind]}
    return Loaded(
        records=tuple(found[trial_id] for trial_id in sorted(found)),
        passed_over=passed_over,
        catalogue=catalogue,
        places=where,
    )


def _stores(root: str) -> list[Store]:
    """Return a result root, or those in a folder of several."""
    store = Store(root)
    if not store.filesystem.isdir(store.path):
        raise UsageError(f"no folder of records at {root!r}: run `harness run` first, or name the folder that it wrote")
    if store.ids():
        return [store]
    entries = store.filesystem.ls(store.path, detail=True)
    names = sorted(PurePosixPath(each["name"]).name for each in entries if each["type"] == "directory")
    inner = [Store(f"{root.rstrip('/')}/{name}") for name in names]
    return [each for each in inner if each.ids()] or [store]
