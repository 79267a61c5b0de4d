"""Which records leave nothing to do, and which trials get another try.

A final record is the method's result. Any other says something about its run: it is tried again when something
has changed that may matter, a few times where chance decides, and whenever the user asks.

What is not here: which trials there are (``plan``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from harness.contract.record import Record, State
from harness.errors import UsageError

CHANCE_TRIES = 3  # under the same conditions, where chance has a part: a worker that was lost, a network that was down
RETRIABLE = tuple(state for state in State if not state.is_final)


@dataclass(frozen=True)
class Retry:
    """Decides whether a record leaves something to do.

    Attributes:
        conditions: What a try depends on besides the trial: versions, device, settings.
        asked: States that the user wants to see tried again once, whatever the conditions.
        began: When this command began; only what ended before is meant by ``asked``.
    """

    conditions: Mapping[str, Any] = field(default_factory=dict)
    asked: Collection[State] = ()
    began: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))

    def settles(self, record: Record) -> bool:
        """Return whether a record leaves nothing to do."""
        if record.state.is_final:
            return True
        if record.state is State.INTERRUPTED or (record.state in self.asked and self._is_old(record)):
            return False
        if record.state is State.EDITED:
            return True  # to replace it would destroy what may be evidence
        tries = [*record.attempts, record.attempt]
        here = [each for each in tries if _conditions(each) == self.conditions and each.get("state") != "interrupted"]
        return len(here) >= CHANCE_TRIES or not all(_is_chance(each) for each in here)

    def _is_old(self, record: Record) -> bool:
        if not record.finished_at:
            return True
        finished = datetime.fromisoformat(record.finished_at)
        return (finished if finished.tzinfo else finished.replace(tzinfo=UTC)) < self.began


def _conditions(attempt: Mapping[str, Any]) -> Any:
    return (attempt.get("error") or {}).get("conditions")


def _is_chance(attempt: Mapping[str, Any]) -> bool:
    error = attempt.get("error") or {}
    return attempt.get("state") == State.LOST or error.get("transient") is True


def parse_states(text: str) -> tuple[State, ...]:
    """Return the states of ``--retry``: ``all``, or some of them separated by commas.

    Raises:
        UsageError: Something else is named, or a state that is a method's result.
    """
    names = [each.strip() for each in text.split(",") if each.strip()]
    if not names or names == ["all"]:
        return RETRIABLE
    for name in names:
        if name not in list(RETRIABLE):
            final = name in [state.value for state in State if state.is_final]
            why = "is the method's result, which no other try would change" if final else "is no state"
            raise UsageError(f"--retry {name!r} {why}; give all or some of {','.join(RETRIABLE)}")
    return tuple(State(name) for name in names)
