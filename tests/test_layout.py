"""What a newcomer reads first, the tree and every file's first line, says where things are."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("harness", "plugins", "benchmarks", "leaderboard")
MOST_LINES = 400
MODULES = sorted(path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
VAGUE = {"utils.py", "util.py", "common.py", "helpers.py", "misc.py", "manager.py"}


def test_the_tree_is_looked_at():
    assert {"harness/engine/lane.py", "plugins/harness_plugins/methods/lora.py"} <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_can_be_read_in_one_go(module):
    lines = (ROOT / module).read_text(encoding="utf-8").count("\n")
    assert lines <= MOST_LINES, f"{lines} lines; where does another concern begin?"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_in_its_first_line_what_it_is_for(module):
    documentation = ast.get_docstring(ast.parse((ROOT / module).read_text(encoding="utf-8")))
    assert documentation, "begin the file with a docstring"
    assert documentation.splitlines()[0].rstrip(":").endswith((".", "?")), "its first line is to be whole sentences"


def test_no_module_is_named_after_nothing():
    assert [module for module in MODULES if module.rpartition("/")[2] in VAGUE] == []
