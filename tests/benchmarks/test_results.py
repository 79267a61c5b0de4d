"""The published results: their records are whole, their suite makes them, and the report says what they say."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.contract.record import Record, State
from harness.planning.suite import read_suite
from harness_leaderboard.boards.build import build_boards
from harness_leaderboard.command import leaderboard
from harness_leaderboard.load import load

FOLDER = Path(__file__).parents[2] / "benchmarks" / "results"
ROOTS = sorted(path for path in FOLDER.iterdir() if path.is_dir())


def records_of(root):
    return [Record.from_json(json.loads(gzip.decompress(path.read_bytes()))) for path in sorted(root.glob("*.json.gz"))]


def test_there_are_results():
    assert ROOTS


@pytest.mark.parametrize("root", ROOTS, ids=lambda root: root.name)
def test_records_are_as_they_were_written_and_of_their_suite(root):
    records, suite = records_of(root), read_suite(root.with_suffix(".toml"))
    assert {record.state for record in records} <= {State.COMPLETE, State.DIVERGED}, "an edited one would be neither"
    reports = [record for record in records if record.trial.purpose == "report"]
    assert {record.trial.seed for record in reports} == set(suite.seeds)
    assert {record.trial.task for record in records} == set(suite.tasks)
    assert {(record.trial.model, record.trial.scale) for record in records} == {(suite.model, suite.scale)}
    assert not list(root.glob("adapters/*"))


def test_what_was_run_twice_is_the_same_suite_with_all_its_records():
    for root in (FOLDER.parent / "reproduced").iterdir():
        records, first = records_of(root), records_of(FOLDER / root.name)
        assert {record.state for record in records} <= {State.COMPLETE, State.DIVERGED}
        report = [
            sorted((r.trial.task, r.trial.method, r.trial.seed) for r in each if r.trial.purpose == "report")
            for each in (records, first)
        ]
        assert report[0] == report[1]
        assert {r.trial.model_revision for r in records} == {r.trial.model_revision for r in first}


def test_the_report_says_what_the_records_say():
    done = subprocess.run(
        [sys.executable, FOLDER / "report.py", "--check"], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, ""), "run benchmarks/results/report.py"


def test_one_command_makes_the_page_of_all_results(tmp_path):
    done = CliRunner().invoke(leaderboard, [str(FOLDER), "-o", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0
    count = sum(len(list(root.glob("*.json.gz"))) for root in ROOTS)
    assert f"{count} records" in done.output
    assert "passed over" not in done.output


def test_boards_of_right_answers_and_correlations_say_what_guessing_scores():
    boards = {board.task: board for board in build_boards(load([str(FOLDER)]).records)}
    assert {task for task, board in boards.items() if board.chance is None} == {"continual/biomed", "continual/finance"}
    assert boards["glue/rte"].chance == pytest.approx(146 / 277)  # entailments among the published validation rows
    assert boards["glue/rte"].is_near_chance
