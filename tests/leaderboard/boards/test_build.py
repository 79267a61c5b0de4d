import dataclasses
import random

import pytest

from harness.contract.record import State
from harness.contract.trial import Trial
from harness_leaderboard.boards.build import build_boards
from harness_leaderboard.view.board import board_view
from harness_leaderboard.view.curves import history
from harness_leaderboard.view.details import details
from harness_leaderboard.view.sentences import leaders_text, limit_text, summary_sentences


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


def test_a_budget_that_is_written_in_two_ways_makes_two_boards_that_name_each_other(make_record):
    def of(budget, parameters):
        trial = {"budget": budget, "budget_parameters": parameters}
        return [make_record(name, seed, trial=trial) for name in "ab" for seed in range(2)]

    boards = build_boards([*of("lora", 98_304), *of("lora:r=8", 98_304), *of("lora:r=4", 49_152), *of("own", 98_304)])
    said = {board.budget: [note for note in board.notes if "in other words" in note] for board in boards}
    assert said["lora:r=4"] == said["own"] == []
    assert said["lora"][0].startswith("The budget lora:r=8 asks for the same 98,304 parameters in other words")
    assert said["lora:r=8"][0].startswith("The budget lora asks for the same 98,304 parameters in other words")


def test_a_score_is_the_mean_over_report_seeds_with_an_interval(make_record):
    board = only([make_record(seed=seed, score=score) for seed, score in enumerate((0.4, 0.5, 0.6))])
    (row,) = board.rows
    assert row.score.value == pytest.approx(0.5)
    assert row.interval.low == pytest.approx(0.5 - 4.302653 * 0.1 / 3**0.5, abs=2e-3)
    assert board.seeds == [0, 1, 2]


def test_one_seed_gets_neither_interval_nor_rank(make_record):
    board = only([make_record("lora", 0, 0.4), make_record("mora", 0, 0.9)])
    assert [row.method for row in board.rows] == ["mora", "lora"]  # in order of score all the same
    for row in board.rows:
        assert row.interval is None
        assert (row.rank, row.rank_reason) == (None, "1 seed")
    assert not board.is_ranked
    assert board.analysis is None


def test_methods_that_cannot_be_told_apart_share_a_rank(make_graded):
    records = [*make_graded("a", 0.85, range(5)), *make_graded("b", 0.85, range(5)), *make_graded("c", 0.4, range(5))]
    board = only(records)
    found = rows(board)
    assert {found["a"].rank, found["b"].rank} == {(1, 2)}
    assert found["c"].rank == (3, 3)
    assert board.difference(found["a"], found["c"]).items == 300
    assert board.outcomes(found["c"]) == {"wins": 0, "ties": 0, "losses": 2}
    assert board.outcomes(found["a"]) == {"wins": 1, "ties": 1, "losses": 0}


def test_pairing_finds_what_overlapping_intervals_hide(make_record):
    # The seeds differ by far more than the methods do, but by the same in both.
    common = [0.1, 0.3, 0.5, 0.7, 0.9, 0.2]
    records = [make_record("a", seed, value + 0.02 + seed * 1e-4) for seed, value in enumerate(common)]
    records += [make_record("b", seed, value) for seed, value in enumerate(common)]
    first, second = only(records).rows
    assert first.interval.low < second.interval.high
    assert (first.rank, second.rank) == ((1, 1), (2, 2))


def test_lower_is_better_turns_the_order_around(make_record):
    change = {"main_metric": "loss", "higher_is_better": False}
    records = [
        make_record(name, seed, 2 - loss, **change) for name, loss in (("a", 1.5), ("b", 1.2)) for seed in (0, 1)
    ]
    assert [row.method for row in only(records).rows] == ["b", "a"]


def test_the_correction_counts_all_pairs(make_graded):
    records = [each for name in "abcd" for each in make_graded(name, 0.5, range(3))]
    assert len(only(records).analysis.differences) == 6


def test_rows_of_other_seeds_are_compared_on_the_seeds_that_both_ran(make_record):
    # "a" also ran seeds that are easy: its mean leads, although it loses on every seed that both ran.
    records = [make_record("a", seed, (0.95 if seed < 5 else 0.3) + seed / 1000) for seed in range(10)]
    records += [make_record(name, seed, 0.4 + seed / 1100) for name in "bc" for seed in range(5, 10)]
    board = only(records)
    found = rows(board)
    assert found["a"].score.value > found["b"].score.value
    assert {row.method: row.rank for row in board.rows} == {"a": (3, 3), "b": (1, 2), "c": (1, 2)}
    assert [row.method for row in board.rows][-1] == "a"  # the order of rows is not against their ranks
    assert any("same seeds" in note for note in board.notes)


def test_items_that_do_not_average_to_the_score_are_not_used(make_record):
    records = [make_record(name, seed, 0.5 + seed / 10, items=[0.0, 1.0, 1.0]) for name in "ab" for seed in (0, 1, 2)]
    assert only(records).analysis.scope == "these items"


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


def test_a_seed_that_did_not_finish_is_said_and_costs_no_rank(make_record):
    records = [make_record(name, seed, 0.5 + seed / 100) for name in ("a", "b", "c") for seed in (0, 1, 2)]
    records.append(make_record("c", 3, state=State.OUT_OF_MEMORY))
    board = only(records)
    assert {row.rank for row in board.rows} == {(1, 3)}
    assert "c: its score is of the 3 seeds that finished; seed 3 out of memory." in board.notes


def test_references_stand_apart(make_record, make_reference):
    board = only([make_record(seed=0), make_record(seed=1), make_reference(0), make_reference(1)])
    assert [row.method for row in board.rows] == ["lora"]
    assert [row.method for row in board.references] == ["full"]
    assert board.references[0].rank is None
    assert board.references[0].budget_deviation_fraction is None


def test_a_method_too_small_for_the_budget_stands_beside_it_labelled(make_record):
    small = {"method": "tiny", "budget_parameters": 1000, "adapter_parameters": 12, "largest": True}
    records = [make_record(seed=seed, trial={"budget_parameters": 1000}) for seed in (0, 1)]
    board = only([*records, *(make_record(seed=seed, trial=small) for seed in (0, 1))])
    assert [row.method for row in board.rows] == [records[0].trial.method]
    (row,) = board.references
    assert (row.method, row.rank, row.beside) == ("tiny", None, "not ranked, largest it can be: 12 of 1,000")
    assert not board.differing


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


def test_a_rate_that_halving_stopped_is_shown_as_stopped_and_no_rival_of_the_chosen_one(make_record):
    def searched(method, rate, *scores):
        trial = {"purpose": "tune", "learning_rate": rate}
        environment = {"search": {"rates": 3, "seeds": 2, "halves": True}}
        return [
            make_record(method, 100 + place, score, trial=trial, environment=environment)
            for place, score in enumerate(scores)
        ]

    rates = [(3e-4, (0.2,)), (1e-3, (0.7, 0.5)), (3e-3, (0.65, 0.5))]
    tune = [each for rate, found in rates for each in searched("lora", rate, *found)]
    tune += searched("mora", 3e-4, 0.9) + searched("mora", 1e-3, 0.95, 0.1)  # 0.9 on one seed is no better than these
    board = only([make_record(name, seed, 0.5) for name in ("lora", "mora") for seed in range(2)] + tune)
    assert {(each.method, each.learning_rate, each.stopped_after) for each in board.tuning} == {
        ("lora", 3e-4, 1), ("lora", 1e-3, None), ("lora", 3e-3, None), ("mora", 3e-4, 1), ("mora", 1e-3, None),
    }  # fmt: skip
    said = "3 rates on 2 seeds, the worse half getting no more after 1, 2, 4, ... of them, and one more where"
    assert any(said in note for note in board.notes)
    assert not any("its search found" in note for note in board.notes)
    grids = [grid for _, found in details(board, []) for grid in found if grid.caption.startswith("Learning-rate")]
    assert {row[6].text for row in grids[0].rows} == {"stopped after 1 seed", "reported", "no"}


def test_unequal_tuning_effort_is_said(make_record):
    tune = make_record(seed=9, trial={"purpose": "tune"})
    board = only([make_record("lora"), make_record("mora"), tune])
    assert any("lora 1, mora 0" in note for note in board.notes)


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ({"rates": 2, "seeds": 1}, "All methods were searched by one rule: 2 rates on a seed, and one more where"),
        (None, "The records do not say whether all were searched by one rule."),
        # A later search on one seed took what an earlier one on two seeds had left.
        ({"rates": 2, "seeds": 2}, "The records do not say whether all were searched by one rule."),
        ({"rates": 3, "seeds": 2, "halves": True}, "The records do not say whether all were searched by one rule."),
    ],
)
def test_a_grid_that_grew_is_no_unequal_effort(make_record, search, said):
    environment = {} if search is None else {"search": search}
    tune = [
        make_record(method, 9, trial={"purpose": "tune", "learning_rate": rate}, environment=environment)
        for method, rates in (("lora", (1e-3, 3e-3)), ("mora", (1e-3, 3e-3, 1e-2)))
        for rate in rates
    ]
    notes = only([make_record("lora"), make_record("mora"), *tune]).notes
    assert any(note.startswith("Learning-rate trials: mora 3, lora 2.") and said in note for note in notes)
    assert not any("not equal" in note for note in notes)


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


def test_a_variant_is_named_by_its_settings_and_not_by_sizes_that_the_budget_decided(make_record):
    def row(**config):
        layers = {f"layer{number}": {"r": config["r"] + 1} for number in range(20)} if config["r"] > 8 else {}
        return make_record(trial={"config": config, "layer_settings": layers})

    board = only([row(r=8, trains="ab"), row(r=14, trains="b")])
    assert {each.variant for each in board.rows} == {"trains=ab", "trains=b"}
    board = only([row(r=4, n=2), row(r=4, n=4)])
    assert {each.variant for each in board.rows} == {"n=2", "n=4"}


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


def noted(board, part):
    return [note for note in board.notes if part in note]


def test_who_leads_is_said_in_words(make_record):
    def board(**scores):
        return only([make_record(name, seed, each + seed / 1000 + seed * len(name) % 3 / 5000)
                     for name, each in scores.items() for seed in range(5)])  # fmt: skip

    assert leaders_text(board(a=0.9, bb=0.5, ccc=0.4)) == "a, ahead of 2"
    assert leaders_text(board(a=0.5, bb=0.5)) in ("a, bb, not told apart", "bb, a, not told apart")
    assert leaders_text(only([make_record()])) == "not ranked"


def test_the_summary_says_when_seeds_differ(make_record):
    same = [make_record(name, seed, 0.5 + seed / 10) for name in "ab" for seed in (0, 1)]
    assert "over 2 seeds (0, 1)" in " ".join(summary_sentences(only(same)))
    other = [*same, make_record("b", 2)]
    assert "over each method's own seeds, which are not the same for all" in " ".join(summary_sentences(only(other)))


def test_budgets_that_are_not_the_same_within_one_percent_are_said(make_record):
    def pair(fraction):
        counts = {"task_parameters": 0, "budget_deviation_fraction": fraction}
        return [make_record("lora"), make_record("fat", counts=counts)]

    assert noted(only(pair(0.3)), "within 1 %") == [
        "The budget is not the same within 1 %; trained adapter parameters against it: fat +30.00 %, lora +0.00 %."
    ]
    assert noted(only(pair(-0.02)), "fat -2.00 %")
    assert not noted(only(pair(0.01)), "within 1 %")


def test_unequal_parameters_besides_the_adapters_are_said(make_record):
    def pair(count):
        counts = {"task_parameters": count, "budget_deviation_fraction": 0.0}
        return [make_record("lora"), make_record("fat", counts=counts)]

    (note,) = noted(only(pair(5_000_000)), "besides the adapters")
    assert "fat 5,000,000, lora 0." in note
    assert not noted(only(pair(0)), "besides the adapters")


def searched(make_record, method, used, scores):
    """A reported rate, and the validation scores of those searched."""
    tune = {rate: {"learning_rate": rate, "purpose": "tune"} for rate in scores}
    return [
        *(make_record(method, seed, 0.5 + seed / 100, trial={"learning_rate": used}) for seed in range(2)),
        *(make_record(method, 99, score, trial=tune[rate]) for rate, score in scores.items()),
    ]


@pytest.mark.parametrize(
    ("used", "scores", "note"),
    [
        (1e-3, {1e-3: 0.6, 3e-4: 0.4, 1e-4: 0.3}, "its rate, 0.001, is at the edge of those searched"),
        (1e-4, {1e-3: 0.5, 3e-4: 0.4, 1e-4: 0.6}, "its rate, 0.0001, is at the edge of those searched"),
        (1e-3, {3e-3: 0.4, 1e-3: 0.6, 3e-4: 0.4}, None),
        (1e-3, {1e-3: 0.6, 3e-4: 0.6, 1e-4: 0.3}, None),  # as good inside as at the edge
        (1e-2, {3e-3: 0.4, 1e-3: 0.6, 3e-4: 0.4}, "is reported at rate 0.01; its search found 0.001 best"),
        (3e-4, {3e-3: 0.6, 1e-3: 0.6, 3e-4: 0.4}, "is reported at rate 0.0003; its search found 0.001 or 0.003 best"),
    ],
)
def test_what_is_odd_about_a_searched_rate_is_said(make_record, used, scores, note):
    found = noted(only(searched(make_record, "lora", used, scores)), "rate")
    found = [each for each in found if each.startswith("lora")]
    assert len(found) == (note is not None)
    assert all(note in each for each in found)


def test_a_rate_that_failed_beyond_the_best_is_a_bound(make_record):
    records = searched(make_record, "lora", 1e-3, {1e-3: 0.6, 3e-4: 0.4})
    trial = {"learning_rate": 3e-3, "purpose": "tune"}
    records.append(make_record("lora", 99, state=State.DIVERGED, trial=trial, metrics={"accuracy": 0.99}))
    assert not noted(only(records), "at the edge")
    assert not noted(only(records), "its search found")


def test_the_search_of_another_recipe_is_not_a_rows_effort(make_record):
    other = {"recipe": {"steps": 5}, "learning_rate": 1e-2, "purpose": "tune"}
    tune = [make_record("lora", 99, 0.9, trial={**other, "learning_rate": rate}) for rate in (1e-2, 1e-1)]
    board = only([*(make_record("lora", seed, 0.5) for seed in range(2)), *tune])
    assert rows(board)["lora"].tune_trials == 0
    assert not noted(board, "its search found")
    own = make_record("lora", 99, 0.9, trial={"purpose": "tune"})
    assert rows(only([make_record("lora"), own, *tune]))["lora"].tune_trials == 1


def test_numbers_of_another_version_of_the_task_are_said(make_record):
    newer = {"plugins": {"method": "peft-harness==0.1.0", "task": "peft-harness==0.2.0"}}
    (note,) = noted(only([make_record("lora"), make_record("mora", trial=newer)]), "versions of the task")
    assert "peft-harness==0.1.0 (lora); peft-harness==0.2.0 (mora)" in note
    assert not noted(only([make_record("lora"), make_record("mora")]), "versions of the task")


def test_scores_of_different_units_are_not_ranked(make_record):
    percent = {"accuracy": {"title": "Accuracy", "unit": "percent", "higher_is_better": True, "help": ""}}
    records = [make_record("lora", seed, 0.93 + seed / 100) for seed in range(3)]
    records += [make_record("mora", seed, 91 + seed, metric_details=percent) for seed in range(3)]
    board = only(records)
    assert not board.is_ranked
    assert {row.rank_reason for row in board.rows} == {"the rows differ in the metric's unit"}


@pytest.mark.parametrize(
    ("recipe", "limits", "text"),
    [
        ({"test_rows": 8}, [8], "Evaluated on 8 items per set"),
        ({"test_rows": 200, "limit": 50}, [50], "Evaluated on 50 items per set"),
        ({"test_rows": 0, "limit": 0}, [0], ""),
        ({"limit": "many"}, [0], ""),
        ({"limit": None}, [0], ""),
    ],
)
def test_every_way_of_scoring_a_part_of_the_data_is_said(make_record, recipe, limits, text):
    board = only([make_record(trial={"recipe": recipe})])
    assert board.item_limits == limits
    assert limit_text(board) == text


def test_a_limit_that_was_not_reached_left_nothing_out(make_record):
    scored = [make_record(seed=seed, items=[1.0, 0.0, 0.5], trial={"recipe": {"limit": 8}}) for seed in range(2)]
    assert only(scored).item_limits == [0]
    assert only([make_record(items=[0.5] * 8, trial={"recipe": {"limit": 8}})]).item_limits == [8]


def test_boards_that_differ_in_the_main_metric_alone_have_titles_of_their_own(make_record):
    loss = {"main_metric": "loss", "higher_is_better": False}
    records = [make_record(seed=0), make_record(seed=1, **loss), make_record(trial={"task": "c4"})]
    titles = [board_view(each).title for each in build_boards(records)]
    assert titles == [
        "c4 · smoke · nano · budget lora:r=8",
        "uuid · smoke · nano · budget lora:r=8 · by accuracy, higher is better",
        "uuid · smoke · nano · budget lora:r=8 · by loss, lower is better",
    ]


def test_a_published_number_of_the_last_step_is_beside_our_final_score(make_record):
    quoted = [
        {"method": "lora", "budget": "lora:r=8", "metric": "accuracy", "value": 0.9, "step": step}
        for step in (250, 500)
    ]
    curve = [{"step": 250, "metrics": {"accuracy": 0.3}}, {"step": 500, "metrics": {"train/loss": 1.0}}]
    (row,) = only([make_record(score=0.5, history=curve, published=quoted)]).rows
    assert [(each.step, each.ours) for each in row.published] == [(250, 0.3), (500, 0.5)]


def test_a_curve_holds_no_score_of_the_test_data(make_record):
    old = [{"step": 250, "metrics": {"accuracy": 0.3}}, {"step": 500, "metrics": {"accuracy": 0.5}}]
    new = [{"step": 250, "metrics": {"accuracy": 0.3}}, {"step": 500, "metrics": {"train/loss": 1.0}}]
    for entries in (old, new):
        (row,) = only([make_record(score=0.5, history=entries)]).rows
        assert history(row.first)["accuracy"] == [(250, 0.3)]
    tune = make_record(score=0.5, history=old, trial={"purpose": "tune"})  # its final score is of the validation split
    assert history(tune)["accuracy"] == [(250, 0.3), (500, 0.5)]


# --- what matches no budget, and what was searched ------------------------------------------------------------------


def own(make_record, method, seed, score, parameters):
    size = {"budget": "own", "budget_parameters": parameters, "adapter_parameters": parameters}
    return make_record(method, seed, score, trial=size)


def test_a_board_of_sizes_of_their_own_says_that_it_matches_nothing_and_ranks_all_the_same(make_record):
    board = only(
        [own(make_record, "lora", seed, 0.5 + seed / 100, 1_000) for seed in range(3)]
        + [own(make_record, "dora", seed, 0.9 + seed / 100, 1_250) for seed in range(3)]
    )
    assert board.is_ranked
    assert {row.budget_deviation_fraction for row in board.rows} == {None}
    (note,) = [each for each in board.notes if "No matched comparison" in each]
    assert "multiples of the smallest (1,000): dora 1.25, lora 1.00" in note
    assert "no comparison at a matched budget" in summary_sentences(board)[0]


def test_a_method_that_ends_with_fewer_parameters_is_said_to_and_matched_there(make_record):
    pruned = {"budget": "lora:r=8", "budget_parameters": 1_000, "adapter_parameters": 1_500, "final_parameters": 1_005}
    whole = {**pruned, "adapter_parameters": 1_000, "final_parameters": None}
    board = only(
        [make_record("adalora", seed, 0.5 + seed / 100, trial=pruned) for seed in range(3)]
        + [make_record("lora", seed, 0.9 + seed / 100, trial=whole) for seed in range(3)]
    )
    (note,) = [each for each in board.notes if "ends with" in each]
    assert note == (
        "adalora starts with 1,500 adapter parameters and ends with 1,005: the budget is matched where it ends."
    )


def test_chosen_checkpoints_are_named(make_record):
    board = only([make_record("lora", seed, 0.5, counts={"checkpoint_step": 3_000 * (seed + 1)}) for seed in range(2)])
    (note,) = [each for each in board.notes if "checkpoint" in each]
    assert note == "lora: the checkpoint that was best on validation was scored, after 3,000, 6,000 updates."


def test_the_effort_of_a_search_is_every_setting_that_was_tried(make_record):
    def searched(n, purpose, seed, score):
        return make_record(
            "melora", seed, score, trial={"config": {"n": n}, "purpose": purpose, "searched": "melora:n=2|4"}
        )

    board = only(
        [
            searched(2, "tune", 99, 0.3),
            searched(4, "tune", 99, 0.6),
            searched(4, "report", 0, 0.6),
            make_record("lora", 0, 0.5),
        ]
    )
    assert {label: row.tune_trials for label, row in rows(board).items()} == {"melora": 2, "lora": 0}
    assert [each.is_chosen for each in board.tuning].count(True) == 1


@pytest.mark.parametrize(("memory", "is_said"), [(9e8, False), (7e8, True)])
def test_a_method_that_would_take_less_memory_than_the_bare_model_is_said(make_record, memory, is_said):
    bare = {"adapter_parameters": 0, "budget": "", "budget_parameters": None}
    records = [
        make_record("frozen", trial=bare, cost={"peak_memory_bytes": 1e9}),
        make_record("lora", cost={"peak_memory_bytes": memory}),
        make_record("mora", cost={"peak_memory_bytes": 2e9}),
    ]
    said = [note for note in only(records).notes if note.startswith("Peak memory was not measured alike: lora would")]
    assert bool(said) == is_said
