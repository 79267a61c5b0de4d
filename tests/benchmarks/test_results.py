"""The published results: their records are whole, their suite makes them, and their README says what they say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from harness.contract.record import Record, State
from harness.planning.suite import read_suite
from harness_leaderboard.boards.build import build_boards

FOLDER = Path(__file__).parents[2] / "benchmarks" / "results"
ROOTS = sorted(path for path in FOLDER.iterdir() if path.is_dir())


def records_of(root):
    return [Record.from_json(json.loads(path.read_text())) for path in sorted(root.glob("*.json"))]


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


def test_the_readme_has_the_board_that_the_records_make():
    (board,) = build_boards(records_of(FOLDER / "minilm-l6"))
    text = (FOLDER / "README.md").read_text()
    table = re.search(r"<!-- board -->\n(.*?)<!-- end -->", text, re.DOTALL)[1].strip().splitlines()[2:]
    said = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    rows = [*board.rows, *board.references]
    assert [line[1] for line in said] == [row.label for row in rows]
    for line, row in zip(said, rows, strict=True):
        assert line[0] == ("ref." if row.rank is None else f"{row.rank[0]}–{row.rank[1]}")
        assert line[2] == f"{row.score.value:.3f}"
        assert line[6] == f"{row.first.trial.adapter_parameters:,}"
        assert float(line[5]) == row.first.trial.learning_rate
    found = float(re.search(r"difference of about (\S+)\s+would", text)[1])
    assert found == pytest.approx(board.analysis.detectable, abs=5e-4)
