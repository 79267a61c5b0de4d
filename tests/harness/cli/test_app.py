"""The command line as a whole: quick answers, unknown commands, and a reader that goes away."""

from __future__ import annotations

import gc
import resource
import subprocess
import sys

import pytest


def test_help_answers_at_once_and_names_the_commands():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "harness", "--help"], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Seconds of this process alone, so that a busy machine changes little.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
    for name in ("run", "plan", "list", "describe", "check", "results", "leaderboard", "base", "track"):
        assert f"\n  {name} " in done.stdout


def test_what_the_system_refuses_is_one_line(command, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.results.store.Store.ids", full)
    done = command("results", "list", "--results", tmp_path)
    assert done.code == 1
    assert done.err == "harness: OSError: [Errno 28] No space left on device (`harness -v ...` shows where)\n"


def test_help_shows_the_examples_as_lines(command):
    done = command("--help")
    lines = [line.split() for line in done.out.splitlines()]
    for example in ("harness run --methods all --task uuid", "harness leaderboard", "harness list methods"):
        assert any(line[: len(example.split())] == example.split() for line in lines), done.out
    assert "\\b" not in done.out


@pytest.mark.parametrize(
    ("target", "reason"),
    [("harness_gone:command", "ModuleNotFoundError: No module named 'harness_gone'"), ("os:sep", "it is a str, not a")],
)
def test_a_command_that_does_not_load_leaves_the_others_alone(command, tmp_path, monkeypatch, target, reason):
    package = tmp_path / "strange_tool-1.2.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: strange-tool\nVersion: 1.2\n")
    (package / "entry_points.txt").write_text(f"[harness.commands]\nstrange = {target}\n")
    monkeypatch.syspath_prepend(tmp_path)
    helped = command("--help")
    assert helped.code == 0
    assert "\n  run " in helped.out
    assert "(does not load: " in helped.out
    assert command("list", "methods").code == 0
    for arguments in (["strange"], ["strange", "--help"], ["strange", "--any", "thing"]):
        done = command(*arguments)
        assert done.code == 2
        assert f"entry point 'strange' of strange-tool 1.2, {target}" in done.err
        assert reason in done.err
        assert "pip uninstall strange-tool" in done.err
        assert done.err.count("\n") == 1


def test_a_command_leaves_how_garbage_is_collected_as_it_was(command):
    before = gc.get_threshold()
    assert command("--version").code == 0
    assert gc.get_threshold() == before


def test_version(command):
    assert command("--version").code == 0


def test_an_unknown_command_exits_with_2(command):
    done = command("nonsense")
    assert "No such command 'nonsense'" in done.err
    assert done.code == 2


def test_a_reader_that_goes_away_is_no_error():
    code = "import sys; sys.argv = ['harness', 'list', 'methods', '--json']; from harness.cli import main; main()"
    done = subprocess.run(
        f'{sys.executable} -c "{code}" | head -c 1', shell=True, capture_output=True, text=True, check=True
    )
    assert "Traceback" not in done.stderr
