"""What guessing scores, told to records that do not say it by others beside them."""

import pytest

from harness_leaderboard.boards.build import build_boards
from harness_leaderboard.load import load
from harness_leaderboard.view.sentences import summary_sentences

ITEMS = [1.0, 0.0, 1.0, 1.0]
SAYS = {"accuracy": {"title": "Accuracy", "unit": "fraction", "chance": 0.5}}


@pytest.fixture
def root(tmp_path, make_record):
    def write(folder, record):
        folder.mkdir(exist_ok=True)
        (folder / f"{record.trial_id}.json").write_text(record.dumps())

    def make(other):
        for method in "ab":
            for seed in range(2):
                write(tmp_path, make_record(method, seed, 0.75, items=ITEMS))
        write(tmp_path, make_record("a", 7, 0.5, items=ITEMS, trial={"purpose": "tune"}))
        write(tmp_path / "guessing", other)
        return tmp_path

    return make


def beside(make_record, items=ITEMS, **trial):
    trial = {"model": "another", "budget": "", "recipe": {"steps": 1, "batch_size": 16}, **trial}
    return make_record("frozen", 0, 0.4, items=items, metric_details=SAYS, trial=trial)


def test_a_record_of_the_same_test_set_says_for_all_what_guessing_scores(root, make_record):
    other = beside(make_record)
    loaded = load([str(root(other))])
    assert other.trial_id not in {each.trial_id for each in loaded.records}
    told = {each.trial.purpose: each.metric_details["accuracy"].get("chance") for each in loaded.records}
    assert told == {"report": 0.5, "tune": None}, "a search is scored on other items"
    (board,) = build_boards(loaded.records)
    assert (board.chance, board.chance_from) == (0.5, (other.trial_id,))
    (said,) = [each for each in summary_sentences(board) if each.startswith("Guessing")]
    assert f"scores 0.50 (counted later, on the same test set: {other.trial_id})" in said


@pytest.mark.parametrize(
    "differs",
    [{"data": "other"}, {"task": "other"}, {"recipe": {"steps": 1, "batch_size": 16, "limit": 9}}, {"items": [1.0]}],
    ids=lambda each: next(iter(each)),
)
def test_a_record_of_another_test_set_says_nothing(differs, root, make_record):
    (board,) = build_boards(load([str(root(beside(make_record, **differs)))]).records)
    assert (board.chance, board.chance_from) == (None, ())


def test_what_a_record_says_itself_stands(root, make_record, tmp_path):
    root(beside(make_record))
    own = make_record("c", 0, 0.75, items=ITEMS, metric_details={"accuracy": {**SAYS["accuracy"], "chance": 0.25}})
    (tmp_path / f"{own.trial_id}.json").write_text(own.dumps())
    found = {each.trial.method: each.metric_details["accuracy"] for each in load([str(tmp_path)]).records}
    assert found["c"]["chance"] == 0.25
    assert "chance_from" not in found["c"]


def test_a_file_beside_that_is_no_record_or_was_edited_is_named_or_not_believed(root, make_record):
    other = beside(make_record)
    folder = root(other)
    path = folder / "guessing" / f"{other.trial_id}.json"
    path.write_text(path.read_text().replace('"chance": 0.5', '"chance": 0.9'))
    (folder / "guessing" / f"{'0' * 16}.json").write_text("{")
    loaded = load([str(folder)])
    assert build_boards(loaded.records)[0].chance is None
    assert [path.rpartition("/")[2] for path in loaded.passed_over] == [f"{'0' * 16}.json"]
