"""The leaderboard is a pipe: each room takes from those before it, and none is gone back to."""

import ast
import subprocess
import sys
from pathlib import Path

import harness_leaderboard

FOLDER = Path(harness_leaderboard.__file__).parent
ROOMS = {"statistics": 0, "boards": 1, "view": 2, "write": 3}
RECORDS = ("harness.contract.record", "harness.results.index", "harness_leaderboard.load")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def files(room):
    found = sorted((FOLDER / room).rglob("*.py"))
    assert found
    return found


def test_every_room_imports_from_itself_and_from_rooms_before_it():
    for room, place in ROOMS.items():
        for path in files(room):
            for module in imports(path):
                first, _, rest = module.partition(".")
                if first == "harness_leaderboard":
                    assert ROOMS[rest.partition(".")[0]] <= place, (path.name, module)


def test_a_writer_sees_the_view_and_nothing_behind_it():
    for path in files("write"):
        for module in imports(path):
            assert not module.startswith(("harness_leaderboard.boards", "harness_leaderboard.statistics", *RECORDS)), (
                path
            )


def test_boards_are_built_in_one_place_per_command():
    source = (FOLDER / "command.py").read_text(encoding="utf-8")
    assert source.count("build_boards(") == 2  # the other compares two roots
    for room in ("view", "write"):
        assert not [path for path in files(room) if "build_boards" in path.read_text(encoding="utf-8")]


def test_what_makes_the_table_is_loaded_while_the_first_trial_trains():
    code = """
import sys
from harness_leaderboard import summary
summary.harness_trial_started()
loaded = set(sys.modules)
summary.harness_summarize([], "results")
print(sorted(each for each in set(sys.modules) - loaded if each.startswith(("harness", "scipy", "statsmodels"))))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
