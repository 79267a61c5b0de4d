"""Commands as a user gives them, in this process and in one of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass

import pytest

from harness import cli


@dataclass(frozen=True)
class Done:
    """A command that has ended: its exit code and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(capsys):
    """Run a command in this process, as the installed script does."""

    def run(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["harness", *map(str, arguments)])
            with pytest.raises(SystemExit) as stop:
                cli.main()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which `run` set for its process
        captured = capsys.readouterr()
        return Done(stop.value.code or 0, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def process():
    """Start a command in a process of its own, which answers Ctrl-C as one at a terminal does.

    What is started in a shell's background ignores it, and so does all that it starts.
    """

    def start(*arguments, **environment):
        return subprocess.Popen(
            [sys.executable, "-m", "harness", *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    return start
