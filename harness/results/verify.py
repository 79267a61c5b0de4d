"""Whether records are what was written, and whether their numbers follow from what else they hold.

What is not here: training a trial again (``cli.verify``), what binds a record (``contract.record``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.contract.record import Record, State
from harness.errors import RecordError
from harness.results.store import Store

TOLERANCE = 1e-9  # relative: a mean computed in another order
SURE = 1.96  # standard errors, of a difference that chance alone would make


@dataclass(frozen=True)
class Finding:
    """What a record is worth.

    Attributes:
        trial_id: Whose.
        verdict: ``sound``, ``unbound`` (of a schema without digests), ``edited`` or ``unreadable``.
        notes: What was found in particular, one line each.
    """

    trial_id: str
    verdict: str
    notes: tuple[str, ...] = ()

    @property
    def is_bad(self) -> bool:
        """Whether nothing in the record may be believed."""
        return self.verdict in ("edited", "unreadable")


def verify(store: Store, trial_ids: Sequence[str]) -> Iterator[Finding]:
    """Yield what each record is worth."""
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
            yield Finding(trial_id, "sound" if record.is_bound else "unbound", tuple(recompute(record)))


def recompute(record: Record) -> Iterator[str]:
    """Yield for each metric whether it follows from the scores of its items."""
    for name, value in record.metrics.items():
        scores = [each for each in record.items.get(name, ()) if each is not None]
        if value is None:
            continue
        if not scores:
            yield f"{name}={value:.6g}: without items, it cannot be recomputed"
            continue
        mean = math.fsum(scores) / len(scores)
        if math.isclose(mean, value, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            yield f"{name}={value:.6g}: recomputed from {len(scores)} items"
        else:
            yield f"{name}={value:.6g}: not the plain mean of its {len(scores)} items, which is {mean:.6g}"


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
