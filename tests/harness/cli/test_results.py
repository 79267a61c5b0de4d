"""``harness results`` lists, shows and exports the records of a result root."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.contract.record import State
from harness.results.store import Store


@pytest.fixture
def results(make_record, make_trial, tmp_path):
    """A result root with a complete and a diverged record; the complete one."""
    store = Store(str(tmp_path / "results"))
    store.prepare()
    complete = make_record(make_trial(method="quick"))
    store.write(complete)
    error = {"type": "TrialDivergedError", "message": "the loss is nan", "traceback": ""}
    store.write(make_record(make_trial(method="diverging"), state=State.DIVERGED, metrics={}, error=error))
    return store.root, complete


def test_results_are_listed_shown_and_exported(results, command, tmp_path):
    root, record = results
    listed = command("results", "list", "--results", root).out
    assert record.trial_id in listed
    assert "diverging" in listed
    assert "accuracy" in command("results", "show", record.trial_id[:6], "--results", root).out
    unknown = command("results", "show", "zzz", "--results", root)
    assert (unknown.code, "0 records" in unknown.err) == (2, True)
    for name in ("table.csv", "table.parquet", "table.json"):
        assert command("results", "export", tmp_path / name, "--results", root).code == 0
        assert (tmp_path / name).stat().st_size > 100
    wrong = command("results", "export", tmp_path / "table.xls", "--results", root)
    assert wrong.code == 2
    assert "table.xls" in wrong.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["results", "list"], "no records in 'results'; run something first"),
        (["results", "show", "abc"], "no records in"),
    ],
)
def test_without_records_the_user_is_told_to_run_something(command, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    done = command(*arguments)
    assert said in done.err
    assert done.code == 2


@pytest.mark.parametrize("words", [["list"], ["export", "table.csv"], ["describe"]])
def test_a_file_that_is_no_record_is_named_and_passed_over(results, command, caplog, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    root, record = results
    path = Path(root) / f"{record.trial_id}.json"
    path.write_text(path.read_text()[:-20])
    assert command("results", *words, "--results", root).code == 0
    assert f"passed over: {path}: not JSON" in caplog.text
    shown = command("results", "show", record.trial_id, "--results", root)
    assert (shown.code, f"{path}: " in shown.err) == (1, True)  # nothing else was asked for


def test_a_root_of_nothing_that_can_be_read_is_refused(command, tmp_path):
    (tmp_path / f"{'0' * 16}.json").write_text("{")
    for words in (["results", "list"], ["results", "export", str(tmp_path / "x.csv")], ["track", "rebuild"]):
        done = command(*words, "--results", str(tmp_path))
        assert (done.code, "none of the records" in done.err) == (2, True)
