"""The page of what can be reproduced names what there is: every suite of a paper, and no name that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

from harness.contract.data_task import DataTask
from harness.planning.choices import resolve_methods
from harness.planning.registry import build_registry

PAGE = (Path(__file__).parents[2] / "docs" / "reproduction.md").read_text(encoding="utf-8")
PAPERS = ("melora", "milora", "mora", "pissa")
REGISTRY = build_registry()


def named():
    """Return everything in code style in the tables' column "here"."""
    rows = [line.split("|") for line in PAGE.splitlines() if line.startswith("| ")]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row[2])]


def test_every_suite_of_a_paper_is_on_the_page():
    assert {name for name in REGISTRY.suites if name.split("-")[0] in PAPERS} <= set(named())


def test_everything_that_the_page_names_exists():
    for name in named():
        if name.startswith("harness analyse "):
            assert name.removeprefix("harness analyse ").partition(":")[0] in REGISTRY.analyses
        elif not any(matches(task, name) for task in REGISTRY.tasks) and name not in REGISTRY.suites:
            resolve_methods([name], REGISTRY, with_knob=True)


def matches(task, name):
    """Return whether a name is a task's, or its family's: ``glue/...``."""
    return task == name or (name.endswith("/...") and task.startswith(name.removesuffix("...")))


def test_every_task_of_a_paper_is_on_the_page():
    small = {"c4", "c4/9m", "c4/35m", "c4/60m", "c4/130m"}  # sizes that no table here has
    missing = [task for task in REGISTRY.tasks if not any(matches(task, name) for name in named())]
    assert [task for task in missing if task not in small and not is_own(task)] == []


def is_own(task):
    """Return whether a task is on data that the user brings."""
    return issubclass(REGISTRY.task(task), DataTask)


def test_every_method_is_on_the_page():
    methods = {name.partition(":")[0] for name in named()}
    assert {each for each in REGISTRY.methods if not each.startswith("peft")} <= methods
