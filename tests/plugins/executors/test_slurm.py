"""The scripts for Slurm, with stand-ins for Slurm's commands that do what these would on two nodes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.results.store import Store

SCRIPTS = Path(__file__).parents[3] / "docs" / "slurm"
STAND_INS = {
    "sbatch": 'exec bash "$@"',
    "scontrol": 'echo "scontrol $*" >> "$LOG"; printf "n1\\nn2\\n"',
    # once for each node, and its own options are not the command's
    "srun": """
        tasks=2
        while [[ $1 == --* ]]; do [[ $1 == --ntasks=* ]] && tasks=${1#*=}; shift; done
        echo "srun $tasks $*" >> "$LOG"
        for ((i = 0; i < tasks; i++)); do "$@" & pids="${pids:-} $!"; done
        trap 'kill -TERM $pids' TERM
        for pid in $pids; do wait $pid || code=$?; done
        exit ${code:-0}""",
    "ray": 'echo "ray $*" >> "$LOG"; [[ $1 == status ]] || sleep 5',
    "harness": """
        trap 'echo saved >> "$LOG"; exit 130' TERM
        echo "harness $*" >> "$LOG"
        for ((i = 0; i < ${LASTS:-0}; i++)); do sleep 0.1; done""",
}  # fmt: skip


@pytest.fixture
def slurm(tmp_path):
    """Return a function that submits a script, and the log of what was called."""
    bin_folder, log = tmp_path / "bin", tmp_path / "log"
    bin_folder.mkdir()
    for name, text in STAND_INS.items():
        (bin_folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (bin_folder / name).chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "LOG": str(log), "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_CPUS_PER_TASK": "64", "SLURM_GPUS_ON_NODE": "8",
    }  # fmt: skip

    def submit(script, *arguments, **more):
        command = ["sbatch", SCRIPTS / script, *map(str, arguments)]
        return subprocess.Popen(command, env={**environment, **more}, stderr=subprocess.PIPE, text=True)

    return submit, log, bin_folder


def test_the_same_command_runs_on_every_node(slurm):
    submit, log, _ = slurm
    running = submit("commands.sh", "--suite", "my own.toml")
    assert running.wait(timeout=30) == 0
    command = "harness run --no-mlflow --suite my own.toml"
    assert log.read_text().splitlines() == [f"srun 2 {command}", command, command]


def test_a_ray_cluster_is_started_in_the_job_and_one_command_on_it(slurm):
    submit, log, _ = slurm
    running = submit("ray.sh", "--suite", "my.toml", "--executor", "ray:gpus=0.5", LASTS="20")
    assert running.wait(timeout=30) == 0
    said = log.read_text().splitlines()
    share = "--num-cpus 64 --num-gpus 8"
    first = f"ray start --head --node-ip-address=n1 --port=6379 {share} --disable-usage-stats --block"
    assert f"srun 1 {first}" in said
    assert f"srun 1 ray start --address n1:6379 {share} --block" in said
    assert [each for each in said if each.startswith("harness")] == [
        "harness run --executor ray --suite my.toml --executor ray:gpus=0.5 --address n1:6379"
    ]


@pytest.mark.parametrize("script", ["commands.sh", "ray.sh"])
def test_sigterm_reaches_the_command_which_is_waited_for(slurm, script):
    submit, log, _ = slurm
    running = submit(script, LASTS="300")
    end = time.monotonic() + 30
    while not re.search("^harness", log.read_text() if log.exists() else "", re.MULTILINE):
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(0.3)
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=30) == 130
    assert "saved" in log.read_text()


@pytest.mark.exhaustive
def test_two_nodes_share_a_sweep(slurm, trouble, tmp_path):
    submit, _, bin_folder = slurm
    (bin_folder / "harness").write_text(f'#!/bin/bash\nexec {sys.executable} -m harness "$@"\n')
    small = ["--task", "uuid", "--steps", "2", "--set", "pairs=2", "--set", "batch_size=2", "--budget", "quick"]
    more = ["--methods", "quick", "--seeds", "4", "--workers", "1", "--device", "cpu"]
    running = submit("commands.sh", *small, *more, "--results", tmp_path / "results")
    assert running.wait(timeout=300) == 0, running.stderr.read()
    records = list(Store(str(tmp_path / "results")).records())
    assert [(record.state.value, record.attempts) for record in records] == [("complete", [])] * 4
