"""What is still to be handed out, in pieces: so that a worker keeps its base model, and a slow one is relieved.

What is not here: who may train a trial at all (``results.claims``), when a piece is given to whom (``schedule``).
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.contract.method import attaches
from harness.contract.trial import Trial
from harness.planning.registry import Registry

MOST_AT_ONCE = 16  # trials in a piece whose pack the worker chooses: what it has, no other can take
_SHARED = ("task", "scale", "recipe", "model", "model_revision", "targets", "precision", "quantize", "data")
_ALIKE = ("method", "config")
_BASE = ("task", "model", "model_revision", "precision", "quantize")


@dataclass
class _Group:
    """Trials that share task, data and base model, and so may share a pack."""

    base: str
    trials: deque[Trial] = field(default_factory=deque)
    elsewhere: int = 0  # times that others turned out to be at it


class Pieces:
    """Trials that wait for a worker.

    A worker goes on with the group that it is on, then with one of the same base model, then with the one on which
    the fewest are; so eight tasks on eight workers load eight models, and the last task's trials are shared by all.

    Args:
        registry: Knows which methods cannot be packed.
        workers: How many there are.
        pack: Most trials in a pack; 0: the worker decides.
    """

    def __init__(self, registry: Registry, workers: int, pack: int) -> None:
        self.registry, self.workers, self.pack = registry, workers, pack
        self._groups: dict[str, _Group] = {}
        self._alone: deque[Trial] = deque()
        self._on: dict[int, str] = {}  # by worker: the group of its last piece
        self._busy: Counter[str] = Counter()  # by group: how many workers are on it

    def __bool__(self) -> bool:
        return len(self) > 0

    def __len__(self) -> int:
        return len(self._alone) + sum(len(group.trials) for group in self._groups.values())

    def add(self, trials: Sequence[Trial]) -> None:
        """Let trials wait, behind those that already do."""
        for trial in trials:
            self._group(trial).trials.append(trial)
        for key in {_content(trial, _SHARED) for trial in trials}:
            self._groups[key].trials = deque(self._neighbours(self._groups[key].trials))

    def put_back(self, trials: Sequence[Trial]) -> None:
        """Let trials that a worker did not come to be the next ones."""
        for trial in reversed(trials):
            self._group(trial).trials.appendleft(trial)

    def add_alone(self, trials: Sequence[Trial]) -> None:
        """Let trials run first, each by itself."""
        self._alone.extend(trials)

    def clear(self) -> None:
        """Forget everything."""
        self._groups.clear()
        self._alone.clear()

    def taken_elsewhere(self, trial: Trial) -> None:
        """Take note that somebody else is at a trial's group: others come first here."""
        self._group(trial).elsewhere += 1

    def pieces_left(self) -> int:
        """Return an estimate of how many workers could be busy at once."""
        return len(self._alone) + sum(-(-len(each.trials) // (self.pack or 1)) for each in self._groups.values())

    def next(self, worker: int) -> tuple[list[Trial], int]:
        """Return the trials that a worker shall train next, and its largest pack; none if nothing waits."""
        if self._alone:
            return [self._alone.popleft()], 1
        key = self._choose(worker)
        if key is None:
            return [], 0
        if (last := self._on.get(worker)) is not None:
            self._busy[last] -= 1
        self._on[worker] = key
        self._busy[key] += 1
        group = self._groups[key].trials
        if self._attaches(group[0]):
            return [group.popleft()], self.pack
        waiting = [each for each in self._groups.values() if each.trials]
        sharers = max(1, self.workers - len(waiting) + 1)
        size = self.pack or min(MOST_AT_ONCE, -(-len(group) // sharers))
        piece: list[Trial] = []
        while group and len(piece) < size and not self._attaches(group[0]):
            piece.append(group.popleft())
        return piece, self.pack

    def _choose(self, worker: int) -> str | None:
        last = self._on.get(worker)
        base = self._groups[last].base if last in self._groups else None
        waiting = [key for key, group in self._groups.items() if group.trials]
        places = {key: place for place, key in enumerate(self._groups)}

        def rank(key: str) -> tuple[bool, bool, int, int]:
            group = self._groups[key]
            return key != last, group.base != base, self._busy[key] - (key == last) + group.elsewhere, places[key]

        return min(waiting, key=rank, default=None)

    def _group(self, trial: Trial) -> _Group:
        return self._groups.setdefault(_content(trial, _SHARED), _Group(_content(trial, _BASE)))

    def _attaches(self, trial: Trial) -> bool:
        return attaches(self.registry.method(trial.method))

    def _neighbours(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return alike trials beside each other, so that they are stacked; otherwise in the order given.

        Those that train alone come last: between the others they would break a pack in two.
        """
        kinds: dict[str, list[Trial]] = {}
        for trial in trials:
            kinds.setdefault(_content(trial, _ALIKE), []).append(trial)
        return sorted((trial for kind in kinds.values() for trial in kind), key=self._attaches)


def _content(trial: Trial, names: Sequence[str]) -> str:
    return json.dumps([getattr(trial, name) for name in names], sort_keys=True)
