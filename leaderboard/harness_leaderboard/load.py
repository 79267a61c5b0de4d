"""Read the records of result roots. Reading only: nothing here judges what a record says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from harness.contract.record import Record
from harness.errors import HarnessError, UsageError
from harness.results.catalogue import Catalogue, read_catalogue
from harness.results.findings import FOLDER, Findings, read
from harness.results.index import Index, tell
from harness.results.store import Store, other_result
from harness_leaderboard.guessing import with_guessing


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What there is to show.

    Attributes:
        records: By trial id, each trial once.
        passed_over: Files among the records that are none, or second ones of a trial, and why they are not shown.
        catalogue: What the methods and tasks say about themselves.
        places: By trial id, where its record is: the result root, and the file's name there.
        findings: Of analyses, each of a subject once.
    """

    records: tuple[Record, ...]
    passed_over: dict[str, str]
    catalogue: Catalogue
    places: dict[str, tuple[str, str]]
    findings: tuple[Findings, ...] = ()


def load(roots: Sequence[str], *, may_be_empty: bool = False) -> Loaded:
    """Return the records of some result roots, which may have trials in common, and warn of what is passed over.

    Of a trial that several roots have, a final record comes before one that says something about its run alone, then
    that of the first root; another one that says something else is passed over.

    Args:
        roots: Local folders or fsspec URLs. The ``*.json`` and ``*.json.gz`` files directly in them are records; other
            files and names that start with a dot (half-written files) are ignored. A folder that holds none is one of
            result roots, and its folders that do are read.
        may_be_empty: Whether a root may have no record yet.

    Raises:
        UsageError: A root is not a folder, or has no record where it must have one.
    """
    found: dict[str, Record] = {}
    marks: dict[str, str] = {}
    where: dict[str, tuple[str, str]] = {}
    passed_over: dict[str, str] = {}
    catalogue: Catalogue = {"methods": {}, "tasks": {}}
    analysed: dict[str, Findings] = {}
    for root in roots:
        count = 0
        for store in stores(root):
            index = Index(store)
            records = with_guessing(index.records(), store, passed_over)
            passed_over |= index.problems
            count += len(records)
            for record in records:
                trial_id, place = record.trial_id, (store.root, index.files[record.trial_id])
                known = found.get(trial_id)
                is_used = known is None or (record.state.is_final and not known.state.is_final)
                if known is not None and marks[trial_id] != index.marks[trial_id]:
                    used, other = (place, where[trial_id]) if is_used else (where[trial_id], place)
                    passed_over[_path(other)] = other_result(_path(used))
                if is_used:
                    found[trial_id], marks[trial_id], where[trial_id] = record, index.marks[trial_id], place
            for name, findings in read_findings(store, passed_over).items():
                analysed.setdefault(name, findings)
            for kind, by_name in read_catalogue(store).items():
                catalogue[kind] = {**by_name, **catalogue[kind]}
        if not count and not may_be_empty:
            tell(passed_over)
            raise UsageError(
                f"no record in {root!r}, nor in the folders in it: looked for files like 0123456789abcdef.json (or "
                ".json.gz), as `harness run` writes them; run it first, or name the folder that it wrote"
            )
    tell(passed_over)
    return Loaded(
        records=tuple(found[trial_id] for trial_id in sorted(found)),
        passed_over=passed_over,
        catalogue=catalogue,
        places=where,
        findings=tuple(analysed[name] for name in sorted(analysed)),
    )


def read_findings(store: Store, passed_over: dict[str, str]) -> dict[str, Findings]:
    """Return what analyses found that a result root keeps, by the name of its file; what is none is passed over."""
    found = {}
    for name in store.artifacts(FOLDER):
        try:
            findings = read(store.read_artifact(name))
            if not findings.about.columns:
                raise HarnessError("it does not say what its numbers are; run `harness analyse` again")
            found[name] = findings
        except HarnessError as error:
            passed_over[f"{store.root.rstrip('/')}/{name}"] = str(error)
    return found


def stores(root: str) -> list[Store]:
    """Return a result root, or those in a folder of several.

    Raises:
        UsageError: It is not a folder.
    """
    store = Store(root)
    if not store.filesystem.isdir(store.path):
        raise UsageError(f"no folder of records at {root!r}: run `harness run` first, or name the folder that it wrote")
    if store.ids():
        return [store]
    entries = store.filesystem.ls(store.path, detail=True)
    names = sorted(PurePosixPath(each["name"]).name for each in entries if each["type"] == "directory")
    inner = [Store(f"{root.rstrip('/')}/{name}") for name in names]
    return [each for each in inner if each.ids()] or [store]


def _path(place: tuple[str, str]) -> str:
    return f"{place[0].rstrip('/')}/{place[1]}"
