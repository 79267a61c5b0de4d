"""What a board says in sentences: what is compared, what may be concluded, how each method was tuned."""

from __future__ import annotations

import math

from harness_leaderboard.boards.model import Board, Failure
from harness_leaderboard.statistics import NOTHING, Stages
from harness_leaderboard.view.scores import listed as named
from harness_leaderboard.view.scores import metric_title, score_decimals
from harness_leaderboard.view.text import many, percent_text, slug_of


def summary_sentences(board: Board) -> list[str]:
    """Return what is compared, at which budget, over how many seeds, and what a rank means here."""
    sentences = []
    if board.rows:
        asked = f" ({board.budget_parameters:,} trained adapter parameters)" if board.budget_parameters else ""
        off = [abs(row.budget_deviation_fraction) for row in board.rows if row.budget_deviation_fraction is not None]
        reached = (f", reached within {percent_text(max(off))}" if max(off) else ", reached exactly") if off else ""
        count = len({row.method for row in board.rows})
        if board.rows[0].first.trial.is_matched:
            sentences.append(f"{many(count, 'method')} at the same budget, {board.budget}{asked}{reached}.")
        else:
            sentences.append(
                f"{many(count, 'method')}, each at the size of its own settings: no comparison at a matched budget."
            )
    else:
        sentences.append("Only reference methods, outside any budget: nothing is ranked.")
    direction = "higher" if board.higher_is_better else "lower"
    if len({tuple(each.trial.seed for each in row.records) for row in board.rows}) > 1:
        over = "each method's own seeds, which are not the same for all"
    else:
        listed = f" ({', '.join(map(str, board.seeds))})" if len(board.seeds) <= 10 else ""
        over = f"{many(len(board.seeds), 'seed')}{listed}"
    sentences.append(f"Score: mean {metric_title(board, board.main_metric)} over {over}; {direction} is better.")
    if chance := chance_sentence(board):
        sentences.append(chance)
    if board.analysis is not None and board.is_ranked:
        items = "on new items of the same kind" if board.analysis.scope == "new items" else "on these items"
        level, pairs = f"{board.analysis.level:.0%}".replace("%", " %"), many(len(board.analysis.differences), "pair")
        sentences.append(
            f"Two methods differ, {items}, if their groups share no letter, and so wherever their ranks do not overlap "
            f"({level} level for the whole board, corrected for {pairs}). Others are not told apart, which is not to "
            "say that they are equal."
        )
        if board.analysis.stages is not None:
            sentences.append(_looks_text(board.analysis.stages, board.analysis.level))
    elif board.rows:
        reasons = dict.fromkeys(row.rank_reason for row in board.rows)
        sentences.append(f"Not ranked: {'; '.join(reasons)}. Rows are in order of score, which is no ranking.")
    if board.rows:
        sentences.append(f"Tuning: {_effort_sentence(board)}")
    if badge := limit_text(board):
        sentences.append(f"{badge}: not the whole data.")
    if board.analysis is not None and board.analysis.detectable is not None:
        sentences.append(_power_text(board, board.analysis.detectable))
    return sentences


def chance_sentence(board: Board) -> str:
    """Return what guessing scores and who is not told apart from it; nothing where it is not known."""
    if board.chance is None:
        return ""
    guess = f"Guessing (always the commonest answer, or one of several at random) scores {chance_text(board)}"
    if board.chance_from:
        guess += f" (counted later, on the same test set: {', '.join(board.chance_from)})"
    held = [row for row in board.rows if row.estimate and row.estimate.beats_chance is not None]
    rest = board.no_better_than_chance
    if not held or board.is_near_chance:  # of which a note speaks
        return f"{guess}."
    if not rest:
        who = "all methods" if len(held) == len(board.rows) > 1 else named([row.label for row in held])
        return f"{guess}. Proven better: {who}."
    return f"{guess}. Not proven better, all methods looked at together: {named([row.label for row in rest])}."


def chance_notes(board: Board) -> list[str]:
    """Return a warning where a whole board may be guessing."""
    if not board.is_near_chance:
        return []
    guess = f"guessing, which scores {chance_text(board)}"
    return [f"No method is told apart from {guess}: nothing here shows that any of them learned more than to guess."]


def chance_text(board: Board) -> str:
    """Return what guessing scores, as scores are shown."""
    return f"{board.chance:.{score_decimals(board)}f}".replace("-", "−")


def _looks_text(stages: Stages, level: float) -> str:
    """Return by which plan a board is looked at, and how far it is."""
    *earlier, last = (str(len(each)) for each in stages.seeds)
    counts = f"{', '.join(earlier)} and {last}" if earlier else last
    levels = [f"{level * share:.2g}" for share in stages.shares]
    latest = max(stages.latest, 1)
    return (
        f"Seeds were added until methods were told apart, by a plan made before: looks after {counts} seeds, of which "
        f"each has a part of the level ({', '.join(levels)}). This is look {latest} of {len(levels)}, level "
        f"{levels[latest - 1]}; what an earlier look found, stands."
    )


def _power_text(board: Board, difference: float) -> str:
    """Return how much two methods must differ for a board to find it."""
    is_fraction = board.metric_details.get(board.main_metric, {}).get("unit") == "fraction"
    if not math.isfinite(difference) or (is_fraction and difference >= 1):
        return "So few seeds would rarely tell two methods apart, however much they differ: run more."
    if difference < NOTHING:
        return "In every seed these methods have the same score, so nothing says how they would differ elsewhere."
    return (
        f"If two methods as noisy as most here truly differed by {difference:.2g}, about 4 of 5 boards like this one, "
        "or more, would tell them apart; the smaller a difference, the more often it goes unseen."
    )


def effort_text(board: Board) -> str:
    """Return how many trials each method was tuned with, e.g. ``3–5``."""
    efforts = {row.tune_trials for row in board.rows}
    least, most = min(efforts, default=0), max(efforts, default=0)
    if not most:
        return "none"
    if least == most:
        return f"{most}"
    return f"{least}–{most}" if least else f"0–{most}, unequal"


def _effort_sentence(board: Board) -> str:
    """Return how the learning rates came about: a board whose methods were not tuned must say so."""
    if not any(row.tune_trials for row in board.rows):
        return (
            "none. Each method ran at the learning rate that its row shows, which nobody searched for: another one may "
            "suit a method better."
        )
    what = "learning rate and settings" if any(row.first.trial.searched for row in board.rows) else "learning rate"
    untuned = [row.label for row in board.rows if not row.tune_trials]
    if untuned:
        who = named(untuned)
        return f"unequal. {who}: at a rate that nobody searched for; the {what} of the others, on validation data."
    return f"{effort_text(board)} trials for each method, to choose its {what} on validation data."


def limit_text(board: Board) -> str:
    """Return on how much of the data a board's rows were scored, or nothing if on all of it."""
    limits = " or ".join(f"{each:,}" if each else "all" for each in board.item_limits)
    return f"Evaluated on {limits} items per set" if any(board.item_limits) else ""


def leaders_text(board: Board) -> str:
    """Return who may be best, in words."""
    return _leaders(board) + "; none is told apart from guessing" * board.is_near_chance


def _leaders(board: Board) -> str:
    leaders = [row.label for row in board.rows if row.rank is not None and row.rank[0] == 1]
    if not leaders:
        return "not ranked"
    if len(leaders) == 1:
        others = sum(row.rank is not None for row in board.rows) - 1
        return f"{leaders[0]}, ahead of {others}"
    if len(leaders) > 4:
        return f"{', '.join(leaders[:3])} and {len(leaders) - 3} more, not told apart"
    return f"{', '.join(leaders)}, not told apart"


def context_text(board: Board) -> str:
    """Return what a board's heading says besides the task."""
    parts = [board.scale, board.model, f"budget {board.budget}" if board.budget else "references only"]
    if board.has_twin:
        parts.append(f"by {board.main_metric}, {'higher' if board.higher_is_better else 'lower'} is better")
    return " · ".join(parts)


def slug_of_board(board: Board) -> str:
    """Return the name of a board's files."""
    direction = "" if board.higher_is_better else "low"
    return slug_of(board.task, board.scale, board.model, board.budget, f"{board.main_metric}{direction}")


def failure_text(failure: Failure) -> str:
    """Return one line about a trial that did not finish."""
    where = f" at step {failure.step}" if failure.step is not None else ""
    why = ": ".join(part for part in (failure.error_type, failure.message) if part) or "no error recorded"
    run = f"{failure.method}, {failure.purpose}, lr {failure.learning_rate:g}, seed {failure.seed}"
    return f"{run}: {failure.state.value.replace('_', ' ')}{where}: {why}"
