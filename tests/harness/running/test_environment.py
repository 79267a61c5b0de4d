"""What a record says about where it was made."""

from __future__ import annotations

import json
import platform
import subprocess

import torch

import harness
from harness.running.environment import _git, describe_environment


def test_environment_is_plain_json_with_versions_and_hardware():
    found = describe_environment(torch.device("cpu"))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["versions"]["harness"] == harness.__version__
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["python"] == platform.python_version()
    assert (found["device"], found["hardware"]) == ("cpu", found["cpu"])
    assert found["threads"] == torch.get_num_threads()


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_commit_of_a_checkout_and_whether_it_was_changed(tmp_path):
    source = tmp_path / "__init__.py"
    source.write_text("")
    assert _git(tmp_path) == {"git_commit": None, "git_dirty": None}
    git(tmp_path, "init", "-q")
    assert _git(tmp_path) == {"git_commit": None, "git_dirty": None}  # somebody else's checkout: the file is not in it
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert _git(tmp_path) == {"git_commit": commit, "git_dirty": False}
    source.write_text("x = 1")
    assert _git(tmp_path) == {"git_commit": commit, "git_dirty": True}


def test_a_machine_without_git_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _git(tmp_path) == {"git_commit": None, "git_dirty": None}
