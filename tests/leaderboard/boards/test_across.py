from harness_leaderboard.boards.across import MOST_ROWS, build_across
from harness_leaderboard.boards.build import build_boards
from harness_leaderboard.view.across import across_grid


def records_of(make_graded, sizes):
    """Return graded records: ``{(method, budget): (ability, parameters)}``."""
    found = []
    for (method, budget), (ability, parameters) in sizes.items():
        trial = {"budget": budget, "budget_parameters": parameters, "adapter_parameters": parameters}
        found += make_graded(method, ability, range(5), trial=trial)
    return found


def test_eight_times_fewer_parameters_are_shown_or_refuted(make_graded):
    sizes = {
        ("lora", "lora:r=8"): (0.5, 8000),
        ("lora", "lora:r=64"): (0.6, 64_000),
        ("dora", "lora:r=8"): (0.9, 8000),
    }
    records = records_of(make_graded, sizes)
    boards = build_boards(records)
    (across,) = build_across(boards, records)
    assert across.reason == ""
    grid = across_grid(across)
    lines = {(row[0].text.split()[0], row[1].text.split()[0]): row for row in grid.rows}
    assert len(grid.rows) == 2  # those of one budget are the board's own business
    assert [cell.text for cell in lines["dora", "lora"]][2] == "8×"
    assert [cell.text for cell in lines["dora", "lora"]][6] == "smaller is better"
    assert [cell.text for cell in lines["lora", "lora"]][6] == "larger is better"
    assert lines["lora", "lora"][3].text.startswith("−")
    assert {row[4].below for row in grid.rows} == {"new items"}  # whose intervals these are, beside them


def test_one_budget_is_no_comparison_across_budgets(make_record):
    records = [make_record(name, seed) for name in "ab" for seed in (0, 1)]
    assert build_across(build_boards(records), records) == []


def test_budgets_that_trained_differently_are_not_tested_and_the_page_says_why(make_record):
    records = [make_record("lora", seed, 0.5 + seed / 50) for seed in (0, 1)]
    longer = {"budget": "lora:r=64", "recipe": {"steps": 9000}}
    records += [make_record("lora", seed, 0.6 + seed / 50, trial=longer) for seed in (0, 1)]
    (across,) = build_across(build_boards(records), records)
    assert across.analysis is None
    assert "not tested, since the trials differ in recipe" in across_grid(across).caption


def test_too_many_to_test_together_are_said(make_record):
    records = [
        make_record(f"method{place}", seed, 0.5 + seed / 50, trial={"budget": budget})
        for place in range(MOST_ROWS // 2 + 1)
        for budget in ("lora:r=8", "lora:r=64")
        for seed in (0, 1)
    ]
    (across,) = build_across(build_boards(records), records)
    assert f"more than the {MOST_ROWS}" in across_grid(across).caption
