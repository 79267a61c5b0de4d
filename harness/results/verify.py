"""Whether records are what was written, and whether their numbers follow from what else they hold.

What is not here: training a trial again (``cli.verify``), what binds a record (``contract.record``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.contract.record import Record, State
from harness.contract.task import Task
from harness.errors import RecordError
from harness.results.signing import Signatures
from harness.results.store import Store

TOLERANCE = 1e-9  # relative: a mean computed in another order
SURE = 1.96  # standard errors, of a difference that chance alone would make


@dataclass(frozen=True)
class Finding:
    """What a record is worth.

    Attributes:
        trial_id: Whose.
        verdict: ``sound``, ``unbound`` (of a schema without digests), ``edited``, ``unreadable``, ``inconsistent`` (a
            metric is not what the task's own formula makes of its items), ``unsigned`` or ``wrongly signed``.
        notes: What was found in particular, one line each.
    """

    trial_id: str
    verdict: str
    notes: tuple[str, ...] = ()

    @property
    def is_bad(self) -> bool:
        """Whether nothing in the record may be believed."""
        return self.verdict not in ("sound", "unbound")


def no_task(name: str) -> type[Task] | None:
    """Return no task, where none are loaded."""
    return None


def verify(
    store: Store, trial_ids: Sequence[str], task: Callable[[str], type[Task] | None] = no_task,
    signatures: Signatures | None = None,
) -> Iterator[Finding]:  # fmt: skip
    """Yield what each record is worth.

    Args:
        store: Where they are.
        trial_ids: Whose.
        task: Returns the task of a name, if it is here.
        signatures: Who vouches for what; ``None``: nobody was asked.
    """
    for trial_id in trial_ids:
        try:
            record = store.read(trial_id)
        except RecordError as error:
            yield Finding(trial_id, "unreadable", (str(error),))
            continue
        if record is None:
            yield Finding(trial_id, "unreadable", ("there is no such record",))
        elif record.state is State.EDITED:
            yield Finding(trial_id, "edited", (str((record.error or {}).get("message")),))
        else:
            notes, follows = recompute(record, task(record.trial.task))
            verdict = "sound" if record.is_bound else "unbound"
            if signatures is not None:
                problem, said = signatures.verdict(record)
                verdict, notes = problem or verdict, [said, *notes]
            yield Finding(trial_id, verdict if follows else "inconsistent", tuple(notes))


def recompute(record: Record, task: type[Task] | None = None) -> tuple[list[str], bool]:
    """Return for each metric whether it follows from the scores of items, and whether none contradicts them.

    By the task's own formula where it has one; else as the mean of its items, as ``Evaluation.items`` promises.
    """
    own: Mapping[str, float] = {}
    notes, follows = [], True
    if task is not None and record.items:
        try:
            own = task.recompute({name: list(scores) for name, scores in record.items.items()})
        except Exception as error:  # noqa: BLE001  a task's formula, on items that anybody may have written
            notes.append(f"the task's own formulas fail on these items: {type(error).__name__}: {error}")
    for name, value in record.metrics.items():
        scores = [each for each in record.items.get(name, ()) if each is not None]
        if value is None:
            continue
        said = f"{name}={value:.6g}"
        if name in own:
            if _is_close(own[name], value):
                notes.append(f"{said}: recomputed by the task's own formula")
            else:
                notes.append(f"{said}: the task's own formula makes {own[name]:.6g} of these items")
                follows = False
        elif not scores:
            notes.append(f"{said}: without items, it cannot be recomputed")
        elif _is_close(mean := math.fsum(scores) / len(scores), value):
            notes.append(f"{said}: recomputed from {len(scores)} items")
        else:
            notes.append(f"{said}: not the plain mean of its {len(scores)} items, which is {mean:.6g}")
    return notes, follows


def _is_close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def compare(old: Record, new: Record) -> tuple[bool, str]:
    """Return whether a trial that was trained again gave the same score, and in words how near it came.

    The same means: no further away than chance would put it, judged by the items that both scored.
    """
    if old.score is None or new.score is None:
        same = old.state is new.state
        return same, f"{old.state} then, {new.state} now" + (f": {new.error['message']}" if new.error else "")
    difference = new.score - old.score
    if difference == 0.0:
        return True, f"{old.main_metric}={new.score:.6g} again, to the last digit"
    pairs = [
        b - a
        for a, b in zip(old.items.get(old.main_metric, ()), new.items.get(old.main_metric, ()), strict=False)
        if a is not None and b is not None
    ]
    said = f"{old.main_metric}={old.score:.6g} then, {new.score:.6g} now"
    if len(pairs) < 2:
        return False, f"{said}; without items, nothing says how far chance goes"
    mean = math.fsum(pairs) / len(pairs)
    error = math.sqrt(math.fsum((each - mean) ** 2 for each in pairs) / (len(pairs) - 1) / len(pairs))
    bound = SURE * error
    return abs(mean) <= bound, f"{said}; chance alone makes differences up to {bound:.3g} on these {len(pairs)} items"
