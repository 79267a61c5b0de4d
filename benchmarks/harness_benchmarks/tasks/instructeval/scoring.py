"""How one output is scored: the functions that the task files name. lm-eval calls each with a row and its outputs.

DROP's F1 follows Dua et al., arXiv:1903.00161, section 5: bags of normalised words, no credit where the number differs.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from harness_benchmarks.tasks.instructeval.sandbox import run_tests


def score_bbh(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Return whether the output starts with the target."""
    return {"exact": float(results[0].strip().startswith(doc["target"]))}


def score_drop(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Return DROP's F1, and whether the output starts with the answer."""
    given = results[0].strip()
    return {"f1": drop_f1(given, doc["answer"]), "exact": float(given.startswith(doc["answer"].strip()))}


def score_humaneval(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Return whether the completed function passes its tests."""
    # The tests may call what the prompt defines besides the function; theirs is the prompt's, not the model's.
    helpers = doc["prompt"] if _compiles(doc["prompt"]) else f"{doc['prompt']}    pass\n"
    outcome = run_tests(f"{doc['prompt']}{results[0]}\n", doc["test"], doc["entry_point"], helpers)
    return {"pass": float(outcome.passed)}


def _compiles(source: str) -> bool:
    try:
        compile(source, "<prompt>", "exec")
    except SyntaxError:
        return False
    return True


def drop_f1(given: str, wanted: str) -> float:
    """Return the F1 of two answers' words; 0 where the wanted answer has numbers and the given one has none of them."""
    a, b = words(given), words(wanted)
    numbers = {word for word in b if _is_number(word)}
    common = len(a & b)
    if not common or (numbers and not numbers & a):
        return float(a == b)
    precision, recall = common / len(a), common / len(b)
    return 2 * precision * recall / (precision + recall)


def words(text: str) -> frozenset[str]:
    """Return an answer's normalised words: lower case, without articles and punctuation, numbers in one spelling."""
    found = set()
    for word in re.split(r"[ \-]", text.lower()):
        if not _is_number(word):
            word = "".join(letter for letter in word if letter not in string.punctuation)
        word = str(float(word)) if _is_number(word) else word
        if word and word not in ("a", "an", "the"):
            found.add(word)
    return frozenset(found)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
