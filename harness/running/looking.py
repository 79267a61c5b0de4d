"""A run until methods are separated: after every look, the cells that more seeds help get those of the next one.

A pure function of the plan of looks and the records, so a run that was killed goes on where it was. What is separated,
a plug-in says (``harness_undecided``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from harness.contract.looks import KEY, Looks
from harness.contract.record import Record
from harness.contract.trial import Trial
from harness.errors import UsageError
from harness.planning.registry import Registry
from harness.planning.search import Cell, Look, Settles, has_ended, wanted


@dataclass(frozen=True)
class Looking:
    """Adds seeds by a plan of looks.

    Attributes:
        looks: The plan.
        registry: Has the plug-ins that say which cells are undecided.
        look_up: Returns a trial's record, or ``None``.
        settles: Whether a record leaves nothing to do.
    """

    looks: Looks
    registry: Registry
    look_up: Look
    settles: Settles = has_ended

    def check(self, cells: Sequence[Cell]) -> None:
        """Refuse to go on with records of another plan.

        Raises:
            UsageError: A record holds another plan, or no plug-in says what is undecided.
        """
        if not self.registry.hook.harness_undecided.get_hookimpls():
            raise UsageError(
                "--until-separated: no plug-in says which methods are separated; the leaderboard does (is it blocked?)"
            )
        for record in self._records(cells):
            found = Looks.of(record.environment)
            if found is not None and found != self.looks:
                raise UsageError(
                    f"the results hold records of a run that was planned to look after "
                    f"{', '.join(map(str, found.counts))} seeds for differences of {found.points:g} points, not "
                    f"{', '.join(map(str, self.looks.counts))} for {self.looks.points:g}; a plan is fixed before the "
                    "first seed: give the same --seeds, --until-separated and --max-seeds, or another --results"
                )

    def further(self, cells: Sequence[Cell]) -> list[Cell] | None:
        """Return the cells with the seeds of the next look, where these help; ``None``: the run is over."""
        undecided = self.undecided(cells)
        found = [self._next(cell) if cell in undecided else cell for cell in cells]
        return found if any(new is not old for new, old in zip(found, cells, strict=True)) else None

    def undecided(self, cells: Sequence[Cell]) -> list[Cell]:
        """Return the cells that more seeds would help, whether there are more of them or not."""
        answers = self.registry.hook.harness_undecided(records=self._planned(cells))
        ids = {each for found in answers for each in found}
        return [cell for cell in cells if ids & {trial.cell for trial in self._wanted(cell)}]

    def ending(self, cells: Sequence[Cell]) -> list[str]:
        """Return why the run is over, in lines for people."""
        tasks = [self.registry.task(cell.template.task) for cell in cells]
        size = self.looks.size_text(task.metrics[task.main_metric].unit for task in tasks)
        if left := self.undecided(cells):
            verdict = f"not told apart, and maybe {size} or more apart: {names(left)}"
        else:
            verdict = f"no two methods are left that are compared, not told apart and maybe {size} or more apart"
        most = max((len(cell.seeds) for cell in cells), default=0)
        answers = self.registry.hook.harness_uncompared(records=self._planned(cells))
        return [f"after {most} seeds {verdict}", *(line for found in answers for line in found)]

    def _planned(self, cells: Sequence[Cell]) -> list[Record]:
        plan = {KEY: self.looks.to_json()}  # also of records that were there before it
        return [replace(each, environment={**each.environment, **plan}) for each in self._records(cells)]

    def _next(self, cell: Cell) -> Cell:
        look = self.looks.counts.index(len(cell.seeds)) + 1
        return cell if look == len(self.looks.counts) else replace(cell, seeds=self.looks.seeds_at(look + 1))

    def _wanted(self, cell: Cell) -> list[Trial]:
        return [trial for trial in wanted(cell, self.look_up, self.settles) if trial.purpose == "report"]

    def _records(self, cells: Sequence[Cell]) -> Iterator[Record]:
        for cell in cells:
            for trial in wanted(cell, self.look_up, self.settles):
                if (record := self.look_up(trial)) is not None:
                    yield record


def names(cells: Sequence[Cell]) -> str:
    """Return cells for people."""
    return ", ".join(dict.fromkeys(f"{cell.template.task}/{cell.template.method}" for cell in cells))
