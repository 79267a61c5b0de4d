"""The executor on Ray: with a cluster of several nodes on this machine, and what it says where there is none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from harness import UsageError
from harness.planning.registry import build_registry
from harness.planning.settings import read_executor
from harness.results.store import Store

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'peft-harness[ray]'")
pytest.importorskip("ray.cluster_utils")

SMALL = ["--task", "uuid", "--methods", "slow", "--budget", "quick", "--set", "pairs=2", "--set", "batch_size=2"]


class Nodes:
    """Stands in for a cluster of which only the size matters."""

    def __init__(self, **resources):
        self.resources = resources

    def __call__(self, address):
        return self

    def cluster_resources(self):
        return self.resources


@pytest.mark.parametrize(
    ("settings", "device", "workers", "there", "devices", "threads"),
    [
        ("", "auto", 0, {"CPU": 4.0}, ("cpu",) * 4, 1),
        ("cpus=2", "auto", 0, {"CPU": 5.0}, ("cpu",) * 2, 2),
        ("gpus=0.5", "auto", 0, {"CPU": 64.0, "GPU": 2.0}, ("cuda:0",) * 4, 1),
        ("gpus=0.5,cpus=8", "cpu", 0, {"CPU": 16.0, "GPU": 2.0}, ("cpu",) * 2, 8),
        ("", "cuda", 7, {"CPU": 1.0}, ("cuda:0",) * 7, 1),
    ],
)
def test_there_are_as_many_workers_as_fit_unless_the_user_says_how_many(
    monkeypatch, settings, device, workers, there, devices, threads
):
    monkeypatch.setattr("harness_plugins.executors.ray._connect", Nodes(**there))
    executor = read_executor(build_registry(), f"ray:{settings}")
    assert executor.devices(device, workers) == (devices, threads)


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cuda", r"has 1 CPU, too little for a worker with 1 CPU, 1 GPU; give .* or --workers N to wait"),
        ("cuda:1", "Ray chooses which of its GPUs; give auto, cpu or cuda"),
    ],
)
def test_what_the_cluster_does_not_have_is_said(monkeypatch, device, said):
    monkeypatch.setattr("harness_plugins.executors.ray._connect", Nodes(CPU=1.0))
    with pytest.raises(UsageError, match=said):
        read_executor(build_registry(), "ray").devices(device, 0)


def test_without_a_cluster_the_message_says_how_to_start_one(monkeypatch):
    def refuse(*arguments, **options):
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(UsageError, match=r"no Ray cluster at 'here:1' \(nobody answers\); start one with `ray start"):
        read_executor(build_registry(), "ray", "here:1").devices("cpu", 1)


# --- a real cluster ---------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(trouble):
    """Three nodes: one that only leads, and two on which one worker fits."""
    from ray.cluster_utils import Cluster

    trouble.setenv("RAY_USAGE_STATS_ENABLED", "0")
    trouble.setenv("TROUBLE_SECONDS", "0.2")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield cluster, [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)]
    finally:
        trouble.delenv("TROUBLE_SECONDS")
        cluster.shutdown()


def run(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "harness", "run", "--no-mlflow", "--device", "cpu", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_a_node_that_is_killed_in_the_middle_costs_no_trial_and_changes_no_number(trouble, cluster, tmp_path):
    """Six trials on two nodes, one of which goes away when both have begun; then the same trials on this machine."""
    nodes, log = cluster[1], tmp_path / "log"
    many = [*SMALL, "--steps", "20", "--seeds", "6"]
    running = run(
        *many, "--executor", "ray", "--address", cluster[0].address, "--results", tmp_path / "cluster",
        TROUBLE_LOG=str(log),
    )  # fmt: skip

    def told(hook):
        lines = log.read_text().splitlines() if log.exists() else []
        return [each for each in map(json.loads, lines) if each["hook"] == hook]

    end = time.monotonic() + 300
    while len({each["trial"] for each in told("progress") if each["step"] > 4}) < 2:
        assert time.monotonic() < end
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.1)
    cluster[0].remove_node(nodes[0], allow_graceful=False)
    out, err = running.communicate(timeout=400)
    assert running.returncode == 0, err
    assert "is gone, and another takes its trials: its Ray node is lost" in err
    assert "trouble: 6 records" in out
    begun = [each["trial"] for each in told("started")]
    assert len(begun) == 7, "only what was on the lost node began again"
    assert len(set(begun)) == 6

    here = run(*many, "--workers", "1", "--results", tmp_path / "here", TROUBLE_SECONDS="0")
    here.communicate(timeout=300)
    assert here.returncode == 0
    theirs = {each.trial_id: each for each in Store(str(tmp_path / "here")).records()}
    for record in Store(str(tmp_path / "cluster")).records():
        same = theirs[record.trial_id]
        assert record.attempts == []
        assert (record.state, record.metrics, record.items, record.history) == (
            same.state, same.metrics, same.items, same.history,
        )  # fmt: skip


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_workers_come_when_the_cluster_grows_and_ctrl_c_gives_everything_back(trouble, cluster, tmp_path):
    """Three workers are asked for, where two fit; a third node comes, and then Ctrl-C."""
    log = tmp_path / "log"
    running = run(
        *SMALL, "--steps", "600", "--seeds", "3", "--workers", "3", "--executor", "ray", "--address",
        cluster[0].address, "--results", tmp_path / "results", TROUBLE_LOG=str(log),
    )  # fmt: skip

    def begun():
        lines = log.read_text().splitlines() if log.exists() else []
        return {each["trial"] for each in map(json.loads, lines) if each["hook"] == "progress"}

    end = time.monotonic() + 300
    while len(begun()) < 2:
        assert time.monotonic() < end
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.2)
    assert len(begun()) == 2
    cluster[0].add_node(num_cpus=1)
    while len(begun()) < 3:
        assert time.monotonic() < end
        time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    start = time.monotonic()
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert time.monotonic() - start < 15
    states = [record.state.value for record in Store(str(tmp_path / "results")).records()]
    assert states == ["interrupted"] * 3
    ray.init(cluster[0].address, log_to_driver=False)
    try:
        end = time.monotonic() + 60
        while ray.available_resources().get("CPU") != 3.0:
            assert time.monotonic() < end, "somebody still holds a share"
            time.sleep(0.5)
    finally:
        ray.shutdown()
