"""The statistics of a board, on arrays: no record and no markup comes in here.

``analyse(Scores(...))`` returns an :class:`Analysis`: estimates with two named intervals, all pairs, ranks that follow
from them. What the parts assume and how they held up in simulation: ``docs/fairness.md``.
"""

from harness_leaderboard.statistics.analysis import NOTHING, Analysis, Difference, Estimate, Share, analyse
from harness_leaderboard.statistics.error import Interval
from harness_leaderboard.statistics.scores import Scores, Search, Stages
from harness_leaderboard.statistics.search import Selection

__all__ = [
    "NOTHING",
    "Analysis",
    "Difference",
    "Estimate",
    "Interval",
    "Scores",
    "Search",
    "Selection",
    "Share",
    "Stages",
    "analyse",
]
