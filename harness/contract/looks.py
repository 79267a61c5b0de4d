"""Looks: after how many seeds a run asks whether its methods are told apart, all fixed before it begins.

Whoever tests after every look finds something in the end. So each look has a share of the level, and what is claimed at
any of them holds together at the whole level. The plan of looks is written into every record of the run: a page that is
made of the records knows how often somebody looked, and with which share.

Source: Lan and DeMets 1983, "Discrete sequential boundaries for clinical trials": a spending function says how much of
the level is used up by when; here the one that acts like Pocock's boundary, ``level * log(1 + (e - 1) t)``. Each look
is tested at what it adds, so the level holds however the looks hang together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_LOOKS = 4
KEY = "looks"  # in a record's environment


def rungs(seeds: int) -> tuple[int, ...]:
    """Return after how many seeds a search that halves stops the worse half: 1, 2, 4, ... and all of them."""
    return (*(2**number for number in range(seeds.bit_length()) if 2**number < seeds), seeds)


@dataclass(frozen=True, kw_only=True)
class Looks:
    """A plan of looks.

    Attributes:
        points: How large a difference matters: of the score times 100 where its unit is a fraction, else in its unit.
        seeds: All that may be run, in the order in which they are.
        counts: How many of them have been run at each look, ascending.
        shares: Of the level, one per look; they sum to 1.
    """

    points: float
    seeds: tuple[int, ...]
    counts: tuple[int, ...]
    shares: tuple[float, ...]

    @classmethod
    def plan(cls, points: float, seeds: Sequence[int], most: int) -> Looks:
        """Return up to four looks, from the seeds given to ``most``, in steps of one factor.

        Args:
            points: How large a difference matters.
            seeds: Of the first look.
            most: Seeds at the last look; those that are not given follow the largest one.
        """
        first, further = len(seeds), range(max(seeds) + 1, max(seeds) + 1 + max(0, most - len(seeds)))
        growth = (most / first) ** (1 / (MOST_LOOKS - 1))
        counts = sorted({min(most, math.ceil(first * growth**number - 1e-9)) for number in range(MOST_LOOKS)})
        spent = [math.log(1 + (math.e - 1) * count / most) for count in counts]
        shares = [now - before for before, now in zip([0.0, *spent], spent, strict=False)]
        return cls(points=float(points), seeds=(*seeds, *further), counts=tuple(counts), shares=tuple(shares))

    def size_text(self, units: Iterable[str]) -> str:
        """Return how large a difference matters, in words, for metrics of these units."""
        words = (
            f"{self.points:g} " + ("points" if each == "fraction" else f"({each or 'as scored'})") for each in units
        )
        return " or ".join(dict.fromkeys(words))

    def seeds_at(self, look: int) -> tuple[int, ...]:
        """Return the seeds of a look, the first being 1."""
        return self.seeds[: self.counts[look - 1]]

    def reached(self, ended: Sequence[int]) -> int:
        """Return the last look of which all seeds have ended, and all of the looks before; 0: not even the first."""
        there = set(ended)
        return sum(set(self.seeds_at(look)) <= there for look in range(1, len(self.counts) + 1))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "points": self.points, "seeds": list(self.seeds), "counts": list(self.counts), "shares": list(self.shares)
        }  # fmt: skip

    @classmethod
    def of(cls, environment: Mapping[str, Any]) -> Looks | None:
        """Return the plan that a record's environment holds; ``None``: it holds none that can be followed."""
        found = environment.get(KEY)
        try:
            looks = cls(
                points=float(found["points"]),  # type: ignore[index]
                seeds=tuple(int(each) for each in found["seeds"]),  # type: ignore[index]
                counts=tuple(int(each) for each in found["counts"]),  # type: ignore[index]
                shares=tuple(float(each) for each in found["shares"]),  # type: ignore[index]
            )
        except (TypeError, KeyError, ValueError):
            return None
        is_plan = (
            0 < len(looks.counts) == len(looks.shares)
            and list(looks.counts) == sorted(set(looks.counts))
            and 1 <= looks.counts[0]
            and looks.counts[-1] == len(looks.seeds) == len(set(looks.seeds))
            and min(looks.shares) > 0
            and sum(looks.shares) < 1 + 1e-9
            and looks.points > 0
        )
        return looks if is_plan else None
