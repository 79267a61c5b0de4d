"""The command line as a whole: quick answers, unknown commands, and a reader that goes away."""

from __future__ import annotations

import resource
import subprocess
import sys


def test_help_answers_at_once_and_names_the_commands():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "harness.cli", "--help"], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Seconds of this process alone, so that a busy machine changes little.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
    for name in ("run", "plan", "list", "describe", "check", "results", "leaderboard", "base", "track"):
        assert f"\n  {name} " in done.stdout


def test_help_and_import_load_nothing_heavy():
    code = """
import sys, harness, harness.cli
try:
    harness.cli.app(["--help"])
except SystemExit:
    pass
print(sorted({"torch", "transformers", "pandas", "mlflow", "datasets", "numpy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


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
