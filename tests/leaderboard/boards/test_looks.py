"""Boards that are looked at while seeds are added."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness import Looks
from harness.contract.record import State
from harness_leaderboard.boards.build import build_boards
from harness_leaderboard.boards.looks import uncompared, undecided

PLAN = Looks.plan(5, (0, 1, 2), 10)


def planned(make_graded, method, ability, seeds, plan=PLAN):
    return make_graded(method, ability, range(seeds), environment={"looks": plan.to_json()})


def board_of(*records):
    (board,) = build_boards([each for group in records for each in group])
    return board


def labels(rows):
    return [row.label for row in rows]


def test_a_look_is_stricter_than_a_board_that_is_looked_at_once(make_graded):
    plain = board_of(make_graded("lora", 0.60, range(3)), make_graded("mora", 0.70, range(3)))
    look = board_of(planned(make_graded, "lora", 0.60, 3), planned(make_graded, "mora", 0.70, 3))
    (once,), (first,) = plain.analysis.differences.values(), look.analysis.differences.values()
    assert first.difference == once.difference
    assert first.adjusted_p_value == pytest.approx(once.adjusted_p_value / PLAN.shares[0])
    assert first.interval.low < once.interval.low < once.interval.high < first.interval.high


def test_seeds_of_a_look_that_is_not_complete_do_not_count_in_the_tests(make_graded):
    three = [planned(make_graded, "lora", 0.60, 3), planned(make_graded, "mora", 0.66, 3)]
    four = board_of(planned(make_graded, "lora", 0.60, 4), planned(make_graded, "mora", 0.66, 4))
    (now,), (before,) = four.analysis.differences.values(), board_of(*three).analysis.differences.values()
    assert (now.adjusted_p_value, now.look) == (before.adjusted_p_value, 1)
    assert any(
        "not in the tests until" in note and {"lora 3", "mora 3"} <= set(note[:-1].rpartition(": ")[2].split(", "))
        for note in four.notes
    )


def test_a_method_without_its_first_look_has_no_rank_and_is_said_why(make_graded):
    board = board_of(
        planned(make_graded, "lora", 0.4, 3), planned(make_graded, "mora", 0.6, 3), planned(make_graded, "dora", 0.6, 2)
    )
    reasons = {row.label: row.rank_reason for row in board.rows}
    assert reasons == {"lora": "", "mora": "", "dora": "its first look, at 3 seeds, is not complete"}


def test_what_an_early_look_found_stands_though_others_went_on(make_graded):
    board = board_of(
        planned(make_graded, "lora", 0.30, 3),
        planned(make_graded, "mora", 0.60, 5),
        planned(make_graded, "dora", 0.61, 5),
    )
    found = {(each.first, each.second): each for each in board.analysis.differences.values()}
    looks = {frozenset(pair): each.look for pair, each in found.items()}
    assert looks == {
        frozenset({"lora", "mora"}): 1, frozenset({"lora", "dora"}): 1, frozenset({"mora", "dora"}): 2
    }  # fmt: skip
    assert all(each.is_separated for pair, each in found.items() if "lora" in pair)


def test_undecided_are_pairs_that_may_differ_by_what_matters(make_graded):
    far, near, same = (
        planned(make_graded, name, ability, 3) for name, ability in (("a", 0.2), ("b", 0.6), ("c", 0.61))
    )
    assert set(labels(undecided(board_of(far, near, same)))) == {"b", "c"}
    large = Looks.plan(50, (0, 1, 2), 10)  # no difference below 50 points matters
    assert not undecided(board_of(*(planned(make_graded, name, 0.6, 3, large) for name in "ab")))


def test_interrupted_seeds_have_not_ended_and_failed_ones_have(make_graded, make_record):
    records = planned(make_graded, "lora", 0.6, 3), planned(make_graded, "mora", 0.6, 2)
    environment = {"looks": PLAN.to_json()}
    stopped = make_record("mora", 2, state=State.INTERRUPTED, environment=environment)
    failed = make_record("mora", 2, state=State.FAILED, environment=environment)
    assert board_of(*records, [stopped]).analysis is None
    assert board_of(*records, [failed]).analysis.differences[0, 1].look == 1


def test_two_plans_are_no_comparison(make_graded):
    other = Looks.plan(5, (0, 1, 2), 20)
    board = board_of(planned(make_graded, "lora", 0.3, 3), planned(make_graded, "mora", 0.6, 3, other))
    assert board.analysis is None
    assert {row.rank_reason for row in board.rows} == {"the rows differ in the plan of looks"}


def test_the_page_says_at_which_look_and_level_it_stands(make_graded, make_terminal):
    records = [*planned(make_graded, "lora", 0.60, 5), *planned(make_graded, "mora", 0.66, 5)]
    assert "looks after 3, 5, 7 and 10 seeds" in make_terminal(records)
    assert "This is look 2 of 4, level 0.01;" in make_terminal(records)


def test_what_was_run_before_or_without_the_plan_is_said(make_graded):
    early = [replace(each, started_at="2025-12-31T23:59:59Z") for each in make_graded("lora", 0.6, range(3))]
    before = [*early, *planned(make_graded, "lora", 0.6, 5)[3:]]
    board = board_of(before, planned(make_graded, "mora", 0.6, 5), make_graded("dora", 0.6, range(3)))
    assert any("before the looks were planned: lora 3." in note for note in board.notes)
    assert any(note.startswith("dora: run without the plan of looks") for note in board.notes)
    assert not any("environment, looks" in note for note in board.notes)


def test_what_was_added_later_beside_the_plan_is_not_called_older_than_it(make_graded):
    later = [replace(each, started_at="2026-01-02T00:00:00Z") for each in make_graded("lora", 0.6, (3, 4))]
    board = board_of([*planned(make_graded, "lora", 0.6, 3), *later], planned(make_graded, "mora", 0.6, 3))
    assert any(note.startswith("Seeds that were added beside the plan of looks: lora 3 4.") for note in board.notes)
    assert not any("before the looks were planned" in note for note in board.notes)


def test_methods_that_get_no_more_seeds_since_nothing_is_compared_with_them_are_named(make_graded):
    look = {"environment": {"looks": PLAN.to_json()}}
    board = board_of(
        make_graded("lora", 0.60, range(3), **look),
        make_graded("mora", 0.60, range(3), **look, trial={"precision": "bfloat16"}),
    )
    assert undecided(board) == []
    (line,) = uncompared(board)
    assert line.startswith(board.task)
    assert {"lora", "mora"} <= set(line.replace(",", "").replace(":", "").split())
    assert line.endswith("not compared, the rows differ in precision")
    compared = board_of(planned(make_graded, "lora", 0.60, 3), planned(make_graded, "mora", 0.60, 3))
    assert uncompared(compared) == []
