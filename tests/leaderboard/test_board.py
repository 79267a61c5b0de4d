import dataclasses
import random

import pytest

from harness.record import State
from harness.trial import Trial
from harness_leaderboard.board import build_boards


def only(records):
    (board,) = build_boards(records)
    return board


def rows(board):
    return {row.label: row for row in board.rows}


def test_one_board_per_task_scale_model_and_budget(make_record):
    records = [
        make_record(trial=change)
        for change in ({}, {"task": "c4"}, {"scale": "small"}, {"model": "m"}, {"budget": "1%"})
    ]
    boards = build_boards(records)
    assert len({(each.task, each.scale, each.model, each.budget) for each in boards}) == len(boards) == 5


def test_a_score_is_the_mean_over_report_seeds_with_an_interval(make_record):
    board = only([make_record(seed=seed, score=score) for seed, score in enumerate((0.4, 0.5, 0.6))])
    (row,) = board.rows
    assert row.score.value == pytest.approx(0.5)
    assert row.score.interval.low == pytest.approx(0.5 - 4.302653 * 0.1 / 3**0.5, abs=1e-6)
    assert board.seeds == [0, 1, 2]


def test_one_seed_gets_neither_interval_nor_rank(make_record):
    board = only([make_record("lora", 0, 0.4), make_record("mora", 0, 0.9)])
    assert [row.method for row in board.rows] == ["mora", "lora"]  # in order of score all the same
    for row in board.rows:
        assert row.score.interval is None
        assert (row.rank, row.rank_reason) == ("", "1 seed")
    assert not board.is_ranked
    assert board.detectable_difference is None


def test_methods_that_cannot_be_told_apart_share_a_rank(make_graded):
    records = [*make_graded("a", 0.85, range(5)), *make_graded("b", 0.85, range(5)), *make_graded("c", 0.4, range(5))]
    board = only(records)
    found = rows(board)
    assert {found["a"].rank, found["b"].rank} == {"1="}
    assert found["c"].rank == "3"
    assert [row.group for row in board.rows] == [1, 1, 2]
    assert found["c"].versus[0].comparison.items == 300


def test_pairing_finds_what_overlapping_intervals_hide(make_record):
    # The seeds differ by far more than the methods do, but by the same in both.
    common = [0.1, 0.3, 0.5, 0.7, 0.9, 0.2]
    records = [make_record("a", seed, value + 0.02 + seed * 1e-4) for seed, value in enumerate(common)]
    records += [make_record("b", seed, value) for seed, value in enumerate(common)]
    first, second = only(records).rows
    assert first.score.interval.low < second.score.interval.high
    assert (first.rank, second.rank) == ("1", "2")


def test_lower_is_better_turns_the_order_around(make_record):
    change = {"main_metric": "loss", "higher_is_better": False}
    records = [
        make_record(name, seed, 2 - loss, **change) for name, loss in (("a", 1.5), ("b", 1.2)) for seed in (0, 1)
    ]
    assert [row.method for row in only(records).rows] == ["b", "a"]


def test_the_correction_counts_all_pairs(make_graded):
    records = [each for name in "abcd" for each in make_graded(name, 0.5, range(3))]
    assert only(records).comparisons == 6


def test_rows_of_other_seeds_are_not_ranked(make_record):
    # "a" also ran seeds that are easy: its mean leads, although it loses on every seed that both ran.
    records = [make_record("a", seed, (0.95 if seed < 5 else 0.3) + seed / 1000) for seed in range(10)]
    records += [make_record(name, seed, 0.4 + seed / 1100) for name in "bc" for seed in range(5, 10)]
    board = only(records)
    assert {row.method: row.rank for row in board.rows} == {"a": "", "b": "1=", "c": "1="}
    assert rows(board)["a"].rank_reason == "ran seeds 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, not 5, 6, 7, 8, 9"
    assert any("same seeds" in note for note in board.notes)


def test_items_that_do_not_average_to_the_score_are_not_paired(make_record):
    records = [make_record(name, seed, 0.5 + seed / 10, items=[0.0, 1.0, 1.0]) for name in "ab" for seed in (0, 1, 2)]
    assert only(records).rows[1].versus[0].comparison.items == 0


def test_failures_are_rows_and_failures_never_dropped(make_record):
    records = [
        make_record("lora", 0, 0.5),
        make_record("lora", 1, state=State.DIVERGED),
        make_record("mora", 0, state=State.FAILED),
    ]
    board = only(records)
    found = rows(board)
    assert found["lora"].states == {State.COMPLETE: 1, State.DIVERGED: 1}
    assert found["mora"].score.value is None
    assert found["mora"].score.reason == "no finished seed"
    assert [(each.method, each.state, each.step, each.message) for each in board.failures] == [
        ("lora", State.DIVERGED, 200, "loss became NaN"),
        ("mora", State.FAILED, 200, "loss became NaN"),
    ]


def test_a_method_with_seeds_that_did_not_finish_gets_no_rank(make_record):
    records = [make_record(name, seed, 0.5 + seed / 100) for name in ("a", "b", "c") for seed in (0, 1, 2)]
    records.append(make_record("c", 3, state=State.OUT_OF_MEMORY))
    found = rows(only(records))
    assert found["c"].rank_reason == "1 of 4 seeds did not finish"
    assert found["a"].rank == "1="


def test_references_stand_apart(make_record, make_reference):
    board = only([make_record(seed=0), make_record(seed=1), make_reference(0), make_reference(1)])
    assert [row.method for row in board.rows] == ["lora"]
    assert [row.method for row in board.references] == ["full"]
    assert board.references[0].rank == ""
    assert board.references[0].budget_deviation_fraction is None


def test_a_reference_belongs_to_every_budget_of_its_task(make_record, make_reference):
    boards = build_boards([make_record(), make_record(trial={"budget": "lora:r=16"}), make_reference()])
    assert [(each.budget, len(each.references)) for each in boards] == [("lora:r=16", 1), ("lora:r=8", 1)]


def test_a_reference_that_trained_differently_is_said(make_record, make_reference):
    trial = {**make_reference().trial.to_json(), "targets": (), "recipe": {"steps": 9}}
    odd = dataclasses.replace(make_reference(), trial=Trial(**trial))
    assert "The reference full differs from the ranked methods in recipe." in only([make_record(), odd]).notes
    assert not any("reference" in note for note in only([make_record(), make_reference()]).notes)


def test_tuning_trials_are_effort_and_not_results(make_record):
    tune = [make_record(seed=9, score=0.99, trial={"purpose": "tune", "learning_rate": rate}) for rate in (1e-3, 1e-2)]
    board = only([make_record(seed=0, score=0.5), *tune])
    (row,) = board.rows
    assert row.score.value == 0.5
    assert row.tune_trials == 2
    assert [(each.learning_rate, each.is_chosen) for each in board.tuning] == [(1e-3, True), (1e-2, False)]


def test_unequal_tuning_effort_is_said(make_record):
    tune = make_record(seed=9, trial={"purpose": "tune"})
    board = only([make_record("lora"), make_record("mora"), tune])
    assert any("lora 1, mora 0" in note for note in board.notes)


def test_a_method_with_tuning_trials_only_is_said(make_record):
    board = only([make_record("lora"), make_record("mora", 9, trial={"purpose": "tune"})])
    assert "mora has learning-rate trials but no reported result yet." in board.notes


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": {"steps": 1}},
        {"data": "other"},
        {"model_revision": "x"},
        {"precision": "bfloat16"},
        {"budget_parameters": 5},
    ],
)
def test_trials_that_differ_in_what_must_be_equal_are_not_ranked(make_record, change):
    records = [make_record("a", seed, 0.5 + seed / 10) for seed in (0, 1)]
    records += [make_record("b", seed, 0.9 + seed / 10, trial=change) for seed in (0, 1)]
    board = only(records)
    (name,) = change
    assert not board.is_ranked
    assert board.rows[0].rank_reason == f"the rows differ in {name}"
    assert any(f"differ in {name}" in note for note in board.notes)


def test_mixed_hardware_and_versions_are_said_with_names(make_record):
    other = {**make_record().environment, "hardware": {"device": "Other GPU", "memory_gib": 8}}
    board = only([make_record("a"), make_record("b", environment=other)])
    (note,) = [each for each in board.notes if "Mixed" in each]
    assert "hardware.device: Other GPU (b); Test CPU (a)" in note


def test_another_command_line_is_not_another_condition(make_record):
    records = [make_record(name, environment={"command": f"harness run --methods {name}"}) for name in "ab"]
    assert not any("Mixed" in note for note in only(records).notes)


def test_records_without_an_environment_are_said(make_record):
    board = only([make_record("a"), make_record("b", environment={})])
    assert any("1 of 2 records do not say" in note for note in board.notes)


def test_different_settings_of_one_method_are_not_averaged(make_record):
    records = [
        make_record(seed=seed, score=0.5, trial={"learning_rate": rate}) for rate in (1e-3, 1e-2) for seed in (0, 1)
    ]
    board = only(records)
    assert {row.variant for row in board.rows} == {"learning_rate=0.001", "learning_rate=0.01"}
    assert any("several rows" in note for note in board.notes)


def test_missing_numbers_carry_their_reason(make_record):
    record = make_record(
        metrics={"accuracy": 0.5, "loss": None}, reasons={"loss": "overflow", "peak_memory_bytes": "no device"}
    )
    cost = {**record.cost, "peak_memory_bytes": None}
    (row,) = only([dataclasses.replace(record, cost=cost)]).rows
    assert (row.metrics["loss"].value, row.metrics["loss"].reason) == (None, "overflow")
    assert (row.costs["peak_memory_bytes"].value, row.costs["peak_memory_bytes"].reason) == (None, "no device")


def test_budget_deviation_is_worked_out_where_the_record_lacks_it(make_record):
    trial = {"budget_parameters": 1000, "adapter_parameters": 1005}
    (row,) = only([make_record(trial=trial, counts={})]).rows
    assert row.budget_deviation_fraction == pytest.approx(0.005)


def test_the_order_of_records_does_not_matter(example_records):
    shuffled = list(example_records)
    random.Random(0).shuffle(shuffled)
    assert build_boards(shuffled) == build_boards(example_records)
