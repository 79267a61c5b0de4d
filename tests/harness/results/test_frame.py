"""Records as tables, files and text."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pandas as pd
import pytest

from harness import UsageError
from harness.contract.record import State
from harness.results.frame import export, frame, history_frame, render_list, render_show


@pytest.fixture
def mixed(make_trial, make_record):
    """A complete trial, a failed one that never got to count anything, and a reference without a budget."""
    failed = make_record(
        make_trial(method="dora", seed=1),
        state=State.FAILED,
        metrics={"accuracy": None},
        reasons={"accuracy": "the trial failed"},
        history=[],
        counts={},
        cost={},
        error={"type": "ValueError", "message": "r=0", "traceback": "Traceback: line 3", "step": None},
    )
    full = make_trial(method="full", budget="", budget_parameters=None, adapter_parameters=50_000, config={})
    return [make_record(), failed, make_record(full, counts={"adapter_parameters": None, "frozen_layers": 2})]


def test_frame_has_one_row_per_record_in_order(mixed):
    table = frame(iter(mixed))
    assert list(table["method"]) == ["lora", "dora", "full"]
    assert list(table["trial_id"]) == [record.trial_id for record in mixed]
    assert list(table["state"]) == ["complete", "failed", "complete"]
    first = table.iloc[0]
    assert first["score"] == first["metrics/accuracy"] == 0.75
    assert first["train_seconds"] == 12.5
    assert first["peak_memory_bytes"] == 1_048_576
    assert json.loads(first["config"]) == {"r": 8, "alpha": 16.0}
    assert first["finished_at"] - first["started_at"] == pd.Timedelta(seconds=20)
    assert first["finished_at"] == pd.Timestamp("2026-01-02T03:04:25Z")


def test_frame_keeps_what_is_missing_missing(mixed):
    table = frame(mixed)
    assert pd.isna(table["score"][1])
    assert table["reasons/accuracy"][1] == "the trial failed"
    assert table["reasons/perplexity"][0] == "the task has no text to score"
    assert table[["error_type", "error_message"]].iloc[1].tolist() == ["ValueError", "r=0"]
    assert pd.isna(table["error_type"][0])
    assert pd.isna(table["budget_parameters"][2])
    assert pd.isna(table["train_seconds"][1])
    assert table["adapter_parameters"].tolist() == [998, 998, 50_000]  # counted, planned, planned
    assert table["counts/frozen_layers"][2] == 2


def test_types_do_not_depend_on_the_records(mixed):
    fixed = frame([]).dtypes
    assert len(frame([])) == 0
    for records in (mixed, mixed[1:2]):
        assert frame(records).dtypes[fixed.index].equals(fixed)
    assert (fixed["seed"], fixed["score"], fixed["peak_memory_bytes"]) == ("Int64", "float64", "float64")


def test_every_fixed_column_is_documented():
    for name in frame([]).columns:
        assert f"``{name}``" in frame.__doc__, name


def test_history_frame_has_one_row_per_step_and_metric(mixed, make_record, make_trial):
    gap = make_record(make_trial(seed=9), history=[{"step": 5, "metrics": {"train/loss": None}}])
    table = history_frame([mixed[0], mixed[1], gap])
    seen = table[["seed", "step", "metric", "value"]].astype(object).to_numpy().tolist()
    assert seen[:3] == [[0, 10, "train/loss", 2.5], [0, 20, "train/loss", 1.5], [0, 20, "accuracy", 0.75]]
    assert seen[3][:3] == [9, 5, "train/loss"]
    assert pd.isna(seen[3][3])
    nothing = make_record(history=gap.history, counts={"adapter_parameters": 0, "task_parameters": 0})
    for table in (history_frame([nothing]), frame([nothing])):
        assert table["learning_rate"].isna().all(), "no rate trained it"
    table = history_frame([mixed[0], mixed[1], gap])
    assert history_frame([]).dtypes.equals(table.dtypes)


def test_export_to_parquet_loses_nothing(mixed, tmp_path):
    export(mixed, tmp_path / "table.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "table.parquet"), frame(mixed), check_dtype=False)


def test_export_to_csv(mixed, tmp_path):
    export(mixed, str(tmp_path / "TABLE.CSV"))
    table = pd.read_csv(tmp_path / "TABLE.CSV")
    assert list(table.columns) == list(frame(mixed).columns)
    assert table["score"][0] == 0.75
    assert pd.isna(table["score"][1])


def test_export_to_json(mixed, tmp_path):
    export(mixed, tmp_path / "table.json")
    rows = json.loads((tmp_path / "table.json").read_text())
    assert [row["score"] for row in rows] == [0.75, None, 0.75]
    assert rows[0]["started_at"].startswith("2026-01-02T03:04:05")


@pytest.mark.parametrize("name", ["table.xlsx", "table"])
def test_export_names_the_formats_it_knows(mixed, tmp_path, name):
    with pytest.raises(UsageError, match=rf"{name}.*\.csv, \.parquet, \.json"):
        export(mixed, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json"])
def test_export_into_a_missing_folder_is_refused(mixed, tmp_path, suffix):
    with pytest.raises(UsageError, match="missing/table"):
        export(mixed, tmp_path / "missing" / f"table.{suffix}")


def test_list_is_sorted_and_shows_failures(mixed):
    lines = render_list(mixed).splitlines()
    assert [line.split()[2] for line in lines[2:]] == ["dora", "full", "lora"]
    dora, full, lora = (line.split() for line in lines[2:])
    assert dora[-3:] == ["failed", "accuracy", "-"]
    assert full[3:5] == ["reference", "50,000"]
    assert lora[0] == mixed[0].trial_id
    assert lora[-1] == "0.75"
    assert render_list([]) == "No records."


def test_ids_that_look_like_numbers_are_not_rounded(make_record, make_trial):
    digits = (make_record(make_trial(seed=seed)) for seed in range(10_000))
    record = next(each for each in digits if each.trial_id.replace("e", "", 1).isdigit())
    assert record.trial_id in render_list([record])


def test_show_tells_the_metrics_with_units_and_why_one_is_missing(make_record):
    text = render_show(make_record())
    assert "toy/lora/lr0.001/s0  complete" in text
    assert "0.75 fraction, higher is better" in text
    assert "- (the task has no text to score)" in text
    assert "1,048,576" in text
    assert '{"r": 7}' in text
    assert "Error" not in text


def test_show_ends_with_the_error(mixed):
    text = render_show(mixed[1])
    assert "ValueError" in text
    assert text.endswith("Traceback: line 3")


def test_importing_results_loads_no_pandas():
    code = "import harness.results.frame, sys; assert not {'pandas', 'torch', 'tabulate'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


TRICKS = "na\u202eme\x1b[2J\x07\u2066\r"  # right to left, clear the screen, bell, isolate, back to the line's start


def test_a_record_cannot_steer_the_terminal(make_record, make_trial):
    error = {"type": TRICKS, "message": TRICKS, "traceback": f"{TRICKS}\nline 2", "step": 1}
    record = make_record(make_trial(method=TRICKS, task=TRICKS), state=State.FAILED, error=error)
    for text in (render_list([record]), render_show(record)):
        assert "na me" in text
        assert not [each for each in text if not each.isprintable() and each != "\n"]
    assert render_show(record).endswith("\nline 2")


@pytest.mark.parametrize("text", ["=1+2", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_csv_holds_no_formulas_and_other_files_the_text_itself(make_record, make_trial, tmp_path, text):
    record = make_record(make_trial(method=text), metrics={"accuracy": -0.25})
    for name in ("table.csv", "table.json", "table.parquet"):
        export([record], tmp_path / name)
    with (tmp_path / "table.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert (line["method"], line["score"], line["seed"]) == (f"'{text}", "-0.25", str(record.trial.seed))
    assert json.loads((tmp_path / "table.json").read_text())[0]["method"] == text
    assert pd.read_parquet(tmp_path / "table.parquet")["method"][0] == text
