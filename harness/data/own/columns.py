"""What the columns of a user's table are: found by name, or said with ``--columns``; never guessed from content.

Where names fit nothing, or more than one thing, the user is asked.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from enum import StrEnum

from harness.errors import DataError, UsageError


class DataKind(StrEnum):
    """What can be learnt from a table."""

    INSTRUCTIONS = "instructions"  # to write a response
    CLASSIFICATION = "classification"  # to choose a label
    TEXT = "text"  # to go on writing


# Names by which a role is found, whatever their case.
NAMES: Mapping[str, Sequence[str]] = {
    "messages": ("messages", "conversations", "conversation"),
    "system": ("system", "system_prompt"),
    "prompt": ("prompt", "instruction", "question", "query"),
    "input": ("input",),
    "response": ("response", "completion", "output", "answer"),
    "text": ("text", "sentence", "review", "content", "document", "body", "tweet", "comment", "abstract"),
    "text_pair": ("text_pair",),
    "label": ("label", "class", "category", "sentiment", "intent"),
}
PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text1", "text2"),
    ("text_a", "text_b"), ("question", "sentence"),
)  # fmt: skip
# Columns that say nothing of what a text is for.
BESIDE_TEXT = ("id", "idx", "index", "", "source", "url", "title", "author", "date", "timestamp", "meta", "metadata")
ROLES: Mapping[DataKind, Sequence[str]] = {
    DataKind.INSTRUCTIONS: ("messages", "system", "prompt", "input", "response"),
    DataKind.CLASSIFICATION: ("text", "text_pair", "label"),
    DataKind.TEXT: ("text",),
}
NEEDED: Mapping[DataKind, Sequence[Sequence[str]]] = {  # one of these sets
    DataKind.INSTRUCTIONS: (("messages",), ("prompt", "response")),
    DataKind.CLASSIFICATION: (("text", "label"),),
    DataKind.TEXT: (("text",),),
}
HELP = (
    "say what they are, e.g. --columns prompt=question,response=answer or --columns text=body,label=stars; "
    f"roles: {', '.join(NAMES)}"
)


def parse_columns(text: str) -> dict[str, str]:
    """Return ``role=column,...`` as a dictionary.

    Raises:
        UsageError: It is not of this form, or names no role.
    """
    found: dict[str, str] = {}
    for each in filter(None, (part.strip() for part in text.split(","))):
        role, equals, column = each.partition("=")
        if not equals or not column:
            raise UsageError(f"--columns {each!r}: write ROLE=COLUMN, e.g. prompt=question")
        if role not in NAMES:
            raise UsageError(f"--columns {each!r}: {role!r} is no role; roles: {', '.join(NAMES)}")
        if role in found:
            raise UsageError(f"--columns: {role} is given twice, as {found[role]!r} and {column!r}; give it once")
        found[role] = column
    return found


def find_columns(
    columns: Sequence[str], given: Mapping[str, str], kind: DataKind | None, where: str
) -> tuple[DataKind, dict[str, str]]:
    """Return what a table is for, and the column of each role.

    Args:
        columns: All there are.
        given: Roles that the user named.
        kind: What the user says the table is for, or ``None``.
        where: The table, for messages.

    Raises:
        DataError: A column is not there, none fits, or more than one does.
    """
    for role, column in given.items():
        if column not in columns:
            near = difflib.get_close_matches(column, columns, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise DataError(f"data: {where} has no column {column!r} ({role}); {hint}columns: {', '.join(columns)}")
    found = _by_name(columns, given)
    fitting = [each for each in DataKind if kind in (None, each) and _fits(each, found, given)]
    if DataKind.TEXT in fitting and kind is None and not given:
        others = [each for each in columns if each not in found["text"] and each.lower() not in BESIDE_TEXT]
        if others or len(fitting) > 1:  # what else is there may be what the text is to be learnt for
            fitting.remove(DataKind.TEXT)
    elif DataKind.TEXT in fitting and len(fitting) > 1:
        fitting.remove(DataKind.TEXT)
    if not fitting:
        wanted = f"a table of {kind}" if kind else "anything known"
        raise DataError(f"data: {where} has columns {', '.join(columns)}, by whose names it is not {wanted}; {HELP}")
    if len(fitting) > 1:
        raise DataError(
            f"data: {where} has columns {', '.join(columns)}, by whose names it could be for "
            f"{' or '.join(fitting)}; say which: --data-kind {fitting[0]}"
        )
    (chosen,) = fitting
    roles: dict[str, str] = {}
    for role in ROLES[chosen]:
        candidates = found.get(role, [])
        if len(candidates) > 1 and not (role in ("prompt", "response", "system", "input") and "messages" in roles):
            raise DataError(
                f"data: {where}: {' and '.join(map(repr, candidates))} could each be the {role}; say which: "
                f"--columns {role}={candidates[0]}"
            )
        if candidates:
            roles[role] = candidates[0]
    if "messages" in roles:
        roles = {"messages": roles["messages"]}
    elif "prompt" not in roles and chosen is DataKind.INSTRUCTIONS:
        roles["prompt"] = roles.pop("input")
    return chosen, roles


def _by_name(columns: Sequence[str], given: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the columns that each role could be."""
    taken = set(given.values())
    lower: dict[str, list[str]] = {}
    for column in columns:
        if column not in taken:
            lower.setdefault(column.lower(), []).append(column)
    found = {role: [column for name in names for column in lower.get(name, ())] for role, names in NAMES.items()}
    for first, second in PAIRS if not {"text", "text_pair"} & set(given) else ():
        if first in lower and second in lower:
            found["text"], found["text_pair"] = lower[first], lower[second]
            break
    return {role: columns for role, columns in found.items() if columns} | {k: [v] for k, v in given.items()}


def _fits(kind: DataKind, found: Mapping[str, Sequence[str]], given: Mapping[str, str]) -> bool:
    """Return whether a table has what a kind needs, and the user named no role that the kind has not."""
    has = {*found, "prompt"} if "input" in found and "prompt" not in found else {*found}
    return set(given) <= set(ROLES[kind]) and any(set(needed) <= has for needed in NEEDED[kind])
