"""``harness new`` writes packages whose own tests pass, that the harness finds once they are installed."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib

import pytest


@pytest.mark.parametrize("kind", ["method", "task"])
def test_the_tests_of_a_new_package_pass_and_it_is_found(command, tmp_path, kind):
    folder = tmp_path / "mine"
    told = command("new", kind, "my-own", "-o", folder)
    assert told.code == 0, told.err
    assert "pip install -e .[test]" in told.out
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)], cwd=folder, env=environment,
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    information = folder / "harness_my_own-0.1.0.dist-info"  # as installing it makes
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1.0\n")
    points = "".join(f"{name} = {module}\n" for name, module in project["entry-points"]["harness"].items())
    (information / "entry_points.txt").write_text(f"[harness]\n{points}")
    listed = subprocess.run(
        [sys.executable, "-m", "harness", "list", f"{kind}s"], cwd=tmp_path, env=environment, capture_output=True,
        text=True, timeout=240, check=False,
    )  # fmt: skip
    assert "my-own" in listed.stdout, listed.stderr


def test_a_new_package_overwrites_nothing(command, tmp_path):
    assert command("new", "method", "mine", "-o", tmp_path).code == 0
    again = command("new", "method", "mine", "-o", tmp_path)
    assert (again.code, "is there already" in again.err) == (2, True)


def test_a_place_that_cannot_be_written_is_named(command, tmp_path):
    (tmp_path / "file").write_text("")
    told = command("new", "method", "mine", "-o", tmp_path / "file" / "x")
    assert (told.code, "cannot write" in told.err, "Traceback" in told.err) == (2, True, False)


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("method", "lora", "there is a method 'lora' already: plug-in 'methods:lora' of peft-harness=="),
        ("task", "uuid", "there is a task 'uuid' already: plug-in 'tasks:uuid' of peft-harness=="),
        ("method", "all", "'all' stands for several methods"),
        ("method", "peft", "names of methods like 'peft:one' begin with"),
        ("task", "classification", "names of tasks like 'classification/one' begin with"),
        ("method", "plugins", "there is a module 'harness_plugins' already"),
    ],
)
def test_a_name_that_somebody_has_is_refused_and_says_who(command, tmp_path, kind, name, said):
    told = command("new", kind, name, "-o", tmp_path / "x")
    assert (told.code, said in told.err, (tmp_path / "x").exists()) == (2, True, False), told.err


@pytest.mark.parametrize("name", ["My", "a b", "1st", "../x", "class", "a--b", ""])
def test_a_name_that_cannot_be_one_is_refused(command, tmp_path, name):
    told = command("new", "task", name, "-o", tmp_path / "x")
    assert (told.code, "lower-case words joined by hyphens" in told.err) == (2, True)
    assert not (tmp_path / "x").exists()
