"""The index: each file is read once, and what changes is read again."""

import gzip
import sqlite3

import pytest

from harness.contract.record import Record, State
from harness.contract.trial import Trial
from harness.results import index as index_module
from harness.results.index import FILE, MOST_TOLD, Index, tell
from harness.results.store import Store


def make(seed: int, score: float = 0.5, state: State = State.COMPLETE) -> Record:
    trial = Trial(
        task="uuid", scale="smoke", recipe={"steps": 2}, model="nano", model_revision="x", method="lora",
        config={"r": 8}, budget="lora:r=8", budget_parameters=8, adapter_parameters=8, learning_rate=1e-3, seed=seed,
        precision="float32",
    )  # fmt: skip
    return Record(
        trial=trial, state=state, metrics={"accuracy": score}, items={"accuracy": [1.0, None, 0.0]},
        history=[{"step": 1, "metrics": {"train/loss": 2.0}}], main_metric="accuracy", higher_is_better=True,
        environment={"git_commit": "abc"}, started_at="", finished_at="",
    )  # fmt: skip


@pytest.fixture
def store(tmp_path):
    store = Store(str(tmp_path / "what?x=1 #"))
    store.prepare()
    for seed in range(3):
        store.write(make(seed))
    return store


def reading(store, monkeypatch):
    """Return the index's records, and how many files were read for them."""
    seen = []
    read = index_module._pack_file
    monkeypatch.setattr(index_module, "_pack_file", lambda path: seen.append(path) or read(path))
    index = Index(store)
    records = index.records()
    monkeypatch.undo()
    return index, records, len(seen)


def test_files_are_read_once(store, monkeypatch):
    assert reading(store, monkeypatch)[2] == 3
    assert (store.local / FILE).exists()  # beside the records, whatever signs the folder's name holds
    _, records, count = reading(store, monkeypatch)
    assert (len(records), count) == (3, 0)
    store.write(make(7))
    _, records, count = reading(store, monkeypatch)
    assert (len(records), count) == (4, 1)


def test_a_record_comes_back_as_it_was_written(store):
    records = Index(store).records()
    by_seed = {each.trial.seed: each for each in records}
    for seed in range(3):
        found, wanted = by_seed[seed], make(seed)
        assert found.trial == wanted.trial
        assert found.metrics == wanted.metrics
        assert dict(found.items) == wanted.items
        assert list(found.history) == wanted.history
        assert found.history[-1]["step"] == 1
        assert len(found.history) == len(found.items) == 1


def test_of_two_files_of_a_trial_the_plain_one_counts_and_another_content_is_said(store):
    first, second = make(0), make(1)
    (store.local / f"{first.trial_id}.json.gz").write_bytes(gzip.compress(first.dumps().encode()))
    (store.local / f"{second.trial_id}.json.gz").write_bytes(gzip.compress(make(1, score=0.9).dumps().encode()))
    for _ in range(2):  # the second time from the index
        index = Index(store)
        assert [each.score for each in index.records()] == [0.5] * 3
        ((path, why),) = index.problems.items()
        assert path == f"{store.root}/{second.trial_id}.json.gz"
        assert f"it differs from {store.root}/{second.trial_id}.json" in why


def test_a_copy_under_another_name_is_no_record(store):
    name = make(0).trial_id
    (store.local / f"{name}.backup.json").write_text(make(0, score=0.9).dumps())
    index = Index(store)
    assert [each.score for each in index.records()] == [0.5] * 3
    assert "renamed" in index.problems[f"{store.root}/{name}.backup.json"]


def test_of_many_files_that_are_passed_over_the_rest_is_counted(caplog):
    tell({f"results/{number}.json": "not JSON" for number in range(MOST_TOLD + 5)})
    assert len(caplog.messages) == MOST_TOLD + 1
    assert caplog.messages[-1] == "passed over: 5 more"


def test_what_is_equal_in_many_records_is_in_memory_once(store):
    records = Index(store).records()
    assert len({id(each.environment) for each in records}) == 1


def test_a_replaced_and_a_removed_record_are_seen(store):
    store.write(make(9, state=State.INTERRUPTED))
    assert {each.state.value for each in Index(store).records()} == {"complete", "interrupted"}
    store.write(make(9, score=0.75))
    (record,) = [each for each in Index(store).records() if each.trial.seed == 9]
    assert (record.state, record.score, len(record.attempts)) == (State.COMPLETE, 0.75, 1)
    (store.local / f"{record.trial_id}.json").unlink()
    assert {each.trial.seed for each in Index(store).records()} == {0, 1, 2}


@pytest.mark.parametrize("content", [b"no database at all" * 100, b""])
def test_a_broken_index_is_made_anew(store, content):
    (store.local / FILE).write_bytes(content)
    assert len(Index(store).records()) == 3


def test_an_index_of_another_version_is_made_anew(store):
    Index(store).records()
    with sqlite3.connect(store.local / FILE) as connection:
        connection.execute("UPDATE about SET version = 'old'")
    assert len(Index(store).records()) == 3


def test_a_held_index_is_never_a_reason_to_show_nothing(store, monkeypatch):
    monkeypatch.setattr("harness.results.index.WAIT_SECONDS", 0.1)
    Index(store).records()
    store.write(make(5))
    holder = sqlite3.connect(store.local / FILE)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        assert len(Index(store).records()) == 4
    finally:
        holder.close()


def test_a_folder_that_cannot_be_written_is_read_all_the_same(store, monkeypatch):
    monkeypatch.setattr("harness.results.index.sqlite3.connect", _refusing(sqlite3.connect))
    assert len(Index(store).records()) == 3


def _refusing(connect):
    def opened(path, **more):
        if path != ":memory:":
            raise sqlite3.OperationalError("unable to open database file")
        return connect(path, **more)

    return opened


def test_many_new_files_are_read_by_several_processes_alike(store, monkeypatch):
    wanted = [(each.trial_id, dict(each.items), list(each.history)) for each in Index(store).records()]
    (store.local / FILE).unlink()
    (store.local / "foreign.json").write_text("{}")
    monkeypatch.setattr("harness.results.index.MANY", 2)
    index = Index(store)
    assert [(each.trial_id, dict(each.items), list(each.history)) for each in index.records()] == wanted
    assert len(index.problems) == 1
