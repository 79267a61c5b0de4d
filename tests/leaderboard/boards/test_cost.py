"""The pair that a comparison opens with."""

from harness_leaderboard.boards.build import build_boards
from harness_leaderboard.boards.cost import first_pair


def opens(records):
    (board,) = build_boards(records)
    first, against, why = first_pair(board)
    return first.label, against.label, why


def seeds(make_record, name, score, step, count=4):
    return [
        make_record(name, seed, score + seed / 50, cost={"step_seconds_solo": step, "train_seconds": 1.0})
        for seed in range(count)
    ]


def test_the_best_is_compared_with_the_cheapest_that_is_not_told_apart(make_graded):
    records = [
        each
        for name, ability, step in (
            ("lora", 0.80, 0.02),
            ("dora", 0.84, 0.04),
            ("mora", 0.81, 0.01),
            ("vera", 0.3, 0.001),
        )
        for each in make_graded(name, ability, range(4), 100, cost={"step_seconds_solo": step})
    ]
    first, against, why = opens(records)
    assert (first, against) == ("dora", "mora")  # vera is cheaper, and worse
    assert "cheapest" in why


def test_a_step_a_little_shorter_is_no_reason_and_where_the_best_is_the_cheapest_it_meets_the_budgets_own(make_record):
    records = [
        each
        for name, score, step in (("dora", 0.6, 0.011), ("mora", 0.55, 0.01), ("lora", 0.5, 0.012))
        for each in seeds(make_record, name, score, step)
    ]
    assert opens(records)[:2] == ("dora", "lora")
    others = [each for each in records if each.trial.method != "lora"]
    assert opens(others)[:2] == ("dora", "mora")


def test_where_lower_is_better_the_best_is_the_lowest(make_record):
    records = [
        each
        for name, loss in (("lora", 3.0), ("dora", 2.0), ("mora", 2.5))
        for seed in range(3)
        for each in [
            make_record(name, seed, main_metric="loss", higher_is_better=False, metrics={"loss": loss + seed / 9})
        ]
    ]
    assert opens(records)[0] == "dora"


def test_there_is_no_pair_of_one_method(make_record):
    (board,) = build_boards([make_record("lora", seed) for seed in range(3)])
    assert first_pair(board) is None
