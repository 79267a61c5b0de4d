"""What was understood of a user's data, in plain JSON types and as text."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from harness.contract.task import IGNORE, Example
from harness.data.own.locate import OwnData
from harness.data.own.rows import OwnRow
from harness.data.own.splits import OwnTables

MARKS = "⟦", "⟧"  # around what carries loss


def describe(own: OwnData, tables: OwnTables) -> dict[str, Any]:
    """Return what was understood: kind, columns, splits, labels and what to know of them."""
    return {
        "title": own.title,
        "kind": own.kind.value,
        "columns": dict(each.split("=", 1) for each in own.fields["columns"]),
        "unused_columns": list(own.unused),
        "rows": {split: len(rows) for split, rows in tables.splits.items()},
        "labels": {split: _counts(rows, tables.labels) for split, rows in tables.splits.items()}
        if tables.labels
        else {},
        "notes": list(tables.notes),
    }


def _counts(rows: Sequence[OwnRow], labels: Sequence[str]) -> dict[str, int]:
    counts = Counter(row.label for row in rows)
    return {label: counts[label] for label in labels}


def lengths(examples: Sequence[Example]) -> dict[str, int]:
    """Return how long examples are, in tokens."""
    counts = sorted(len(each.input_ids) for each in examples)
    return {
        "shortest": counts[0],
        "median": int(statistics.median(counts)),
        "95 %": counts[min(len(counts) - 1, int(0.95 * len(counts)))],
        "longest": counts[-1],
    }


def rendered(example: Example, tokenizer: Any, labels: Sequence[str] = ()) -> str:
    """Return an example as the model reads it; the tokens that carry loss are marked."""
    if isinstance(example.labels, (int, float)):
        text = tokenizer.decode(list(example.input_ids))
        return f"{text} -> {MARKS[0]}{labels[int(example.labels)] if labels else example.labels}{MARKS[1]}"
    parts: list[tuple[bool, list[int]]] = []
    for token, label in zip(example.input_ids, example.labels, strict=True):
        trains = label != IGNORE
        if not parts or parts[-1][0] != trains:
            parts.append((trains, []))
        parts[-1][1].append(int(token))
    return "".join(
        f"{MARKS[0]}{tokenizer.decode(ids)}{MARKS[1]}" if trains else tokenizer.decode(ids) for trains, ids in parts
    )


def as_text(found: Mapping[str, Any]) -> str:
    """Return a description as text."""
    from tabulate import tabulate

    head = [
        f"{found['title']}: {found['kind']}",
        "columns   " + ", ".join(f"{role} = {column}" for role, column in found["columns"].items()),
    ]
    if found["unused_columns"]:
        head.append("not read  " + ", ".join(found["unused_columns"]))
    names = list(next(iter(found["labels"].values()), {}))
    rows = [
        [split, f"{count:,}", *(found["labels"][split][name] for name in names)]
        for split, count in found["rows"].items()
    ]
    lines = [*head, "", tabulate(rows, ["split", "rows", *names], disable_numparse=True), ""]
    lines += [f"* {note}" for note in found["notes"]]
    if "tokens" in found:
        told = ", ".join(f"{name} {count:,}" for name, count in found["tokens"].items())
        lines.append(f"* tokens of training examples ({found['model']}): {told}")
    for number, text in enumerate(found.get("examples", ()), 1):
        lines += ["", f"--- example {number}; what carries loss is between {' and '.join(MARKS)} ---", text]
    return "\n".join(lines)
