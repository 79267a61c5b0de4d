"""Which of a user's rows train, which choose, which are scored: as given, or made by the rows' own content.

Made splits depend on the rows' hashes alone, not on their order or on a seed. Rows that give the model the same stay on
one side. Where splits are given, a training row that is also a validation or test row does not train, and is counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.data.own.columns import DataKind
from harness.data.own.recipe import OwnRecipe
from harness.data.own.rows import OwnRow, read_own_rows
from harness.errors import DataError

FEWEST = 10  # different rows that three splits can be made of
MANY_LABELS = 20  # more labels than this, for less than two rows each, are no classes


@dataclass(frozen=True)
class OwnTables:
    """A user's rows.

    Attributes:
        splits: ``train``, ``validation`` and ``test``.
        labels: Of a classification, in the order of the model's outputs.
        notes: What a reader must know: what is a duplicate, and which splits were made.
    """

    splits: Mapping[str, Sequence[OwnRow]]
    labels: tuple[str, ...]
    notes: tuple[str, ...]


def read_own(recipe: OwnRecipe, kind: DataKind, data_dir: Path | None) -> OwnTables:
    """Return the rows that a recipe names, checked and split.

    Raises:
        DataError: Rows are not what they should be, labels are not the same everywhere, or there are too few rows.
    """
    given = {
        split: read_own_rows(table, data_dir, kind, recipe.roles(), recipe.labels)
        for split, table in recipe.tables().items()
    }
    rows = [row for each in given.values() for row in each]
    labels = recipe.labels or labels_of(rows) if kind is DataKind.CLASSIFICATION else ()
    notes = _duplicates(rows)
    splits: dict[str, list[OwnRow]] = {}
    if "all" in given:
        splits["train"] = given["all"]
    else:
        for split in ("test", "validation", "train"):  # what is scored goes first
            splits[split] = given.get(split, [])
        elsewhere: set[str] = set()
        for split, each in splits.items():
            kept = [row for row in each if row.key not in elsewhere]
            if len(kept) < len(each):
                notes.append(f"{len(each) - len(kept)} rows of {split} are also in another split, and left out of it")
            elsewhere |= {row.key for row in each}
            splits[split] = kept
        if not splits["train"]:
            raise DataError("data: every row of train is also in validation or test, so none is left to train on")
    missing = [split for split in ("validation", "test") if not splits.get(split)]
    if missing:
        fractions = {"validation": recipe.validation_fraction, "test": recipe.test_fraction}
        made = make_splits(splits["train"], {split: fractions[split] for split in missing})
        splits |= made
        sizes = ", ".join(f"{split} {len(made[split])}" for split in made)
        notes.append(f"splits made by content: {sizes}")
    if kind is DataKind.CLASSIFICATION:
        _check_labels(splits, labels)
    order = ("train", "validation", "test")
    return OwnTables({split: splits[split] for split in order}, labels, tuple(notes))


def make_splits(rows: Sequence[OwnRow], fractions: Mapping[str, float]) -> dict[str, list[OwnRow]]:
    """Return rows in splits of about these shares, and the rest as ``train``, each in the rows' order.

    Every label is split by itself, so that rare ones are on every side where that is possible.

    Raises:
        DataError: There are too few different rows.
    """
    label_of: dict[str, str] = {}
    for row in rows:
        label_of.setdefault(row.key, row.label)
    if len(label_of) < FEWEST:
        raise DataError(
            f"data: {len(label_of)} different rows are too few to make {', '.join(fractions)} of; "
            f"bring {FEWEST} or more"
        )
    groups: dict[str, list[str]] = defaultdict(list)
    for key in sorted(label_of):
        groups[label_of[key]].append(key)
    side: dict[str, str] = {}
    for keys in groups.values():
        begin = 0
        for split, fraction in fractions.items():
            end = begin + round(len(keys) * fraction)
            side |= dict.fromkeys(keys[begin:end], split)
            begin = end
    for split in fractions:
        if split not in side.values():  # so few of every label that each share rounds to none
            side[next(key for key in sorted(label_of) if key not in side)] = split
    found: dict[str, list[OwnRow]] = {"train": [], **{split: [] for split in fractions}}
    for row in rows:
        found[side.get(row.key, "train")].append(row)
    return found


def order_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Return labels in the order of the model's outputs: whole numbers by size, words by letter."""
    numbers = all(label.removeprefix("-").isdecimal() for label in labels)
    return tuple(sorted(labels, key=int if numbers else str))


def labels_of(rows: Sequence[OwnRow]) -> tuple[str, ...]:
    """Return the labels that rows have.

    Raises:
        DataError: There is only one, they look like free text, or two differ in case or spaces only.
    """
    first: dict[str, str] = {}
    for row in rows:
        first.setdefault(row.label, row.place)
    if len(first) < 2:
        raise DataError(f"data: every row has label {next(iter(first))!r}; there is nothing to tell apart")
    if len(first) > MANY_LABELS and len(first) * 2 > len(rows):
        raise DataError(
            f"data: {len(first)} different labels in {len(rows)} rows, e.g. {next(iter(first))!r:.60}: these are no "
            "classes; say which column is, with --columns label=COLUMN"
        )
    plain: dict[str, str] = {}
    for label, place in first.items():
        other = plain.setdefault(label.strip().lower(), label)
        if other != label:
            raise DataError(
                f"data: labels {other!r} ({first[other]}) and {label!r} ({place}) differ only in case or spaces; "
                "write them alike, or rename one"
            )
    return order_labels(list(first))


def _check_labels(splits: Mapping[str, Sequence[OwnRow]], labels: Sequence[str]) -> None:
    trained = {row.label for row in splits["train"]}
    for split in ("validation", "test"):
        for row in splits[split]:
            if row.label not in trained:
                raise DataError(
                    f"data: {row.place}: label {row.label!r} is in {split} but in no training row; add training rows "
                    f"of it, or leave it out (labels that train: {', '.join(order_labels(list(trained)))})"
                )
    if missing := [label for label in labels if label not in trained]:
        raise DataError(f"data: no training row has label {missing[0]!r}; add some, or do not declare it")


def _duplicates(rows: Sequence[OwnRow]) -> list[str]:
    """Return what there is to say about rows that give the model the same."""
    groups: dict[str, list[OwnRow]] = defaultdict(list)
    for row in rows:
        groups[row.key].append(row)
    again = [each for each in groups.values() if len(each) > 1]
    if not again:
        return []
    notes = [
        f"{sum(map(len, again)) - len(again)} rows repeat what another one asks, e.g. {again[0][0].place} and "
        f"{again[0][1].place}; they stay on one side"
    ]
    torn = [each for each in again if len({row.label or row.turns[-1:] for row in each}) > 1]
    if torn and any(row.label or row.turns for row in torn[0]):
        notes.append(f"{len(torn)} of them have different answers, e.g. {torn[0][0].place} and {torn[0][1].place}")
    return notes
