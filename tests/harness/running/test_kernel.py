"""Out of memory is what the kernel says, and nothing else."""

from __future__ import annotations

import pytest

from harness.running import kernel


@pytest.fixture
def group(tmp_path, monkeypatch):
    """A control group of version 2 whose counts the test writes."""
    (tmp_path / "cgroup").write_text("0::/jobs/one\n")
    folder = tmp_path / "fs" / "jobs" / "one"
    folder.mkdir(parents=True)
    monkeypatch.setattr(kernel, "OWN_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(kernel, "CGROUPS", tmp_path / "fs")
    monkeypatch.setattr(kernel, "LOG", tmp_path / "nothing")
    (folder / "memory.events").write_text("low 0\nmax 3\noom 0\noom_kill 4\n")
    return folder


def test_a_count_that_rose_since_the_last_look_is_the_kernel_s_word(group):
    kills = kernel.MemoryKills()
    assert kills.why(7) == ""
    (group / "memory.events").write_text("low 0\nmax 3\noom 1\noom_kill 5\n")
    assert "oom_kill 4 -> 5" in kills.why(7)
    assert kills.why(7) == "", "that was another death"


def test_the_log_names_the_process(group, tmp_path, monkeypatch):
    log = tmp_path / "kmsg"
    log.write_text("3,1,2,-;Out of memory: Killed process 77 (python) total-vm:9kB\n")
    monkeypatch.setattr(kernel, "LOG", log)
    monkeypatch.setattr(kernel, "log", lambda: log.read_text())
    kills = kernel.MemoryKills()
    assert "process 77" in kills.why(77)
    assert kills.why(7) == ""


def test_version_1_counts_too(tmp_path, monkeypatch):
    (tmp_path / "cgroup").write_text("4:cpu,cpuacct:/x\n3:memory:/x\n")
    folder = tmp_path / "memory" / "x"
    folder.mkdir(parents=True)
    (folder / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    monkeypatch.setattr(kernel, "OWN_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(kernel, "CGROUPS", tmp_path)
    assert kernel.counts() == {str(folder / "memory.oom_control"): 2}


def test_without_a_group_the_machine_s_count_is_read_and_without_any_nothing_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel, "OWN_GROUPS", tmp_path / "nothing")
    monkeypatch.setattr(kernel, "EVERYWHERE", tmp_path / "vmstat")
    assert kernel.counts() == {}
    (tmp_path / "vmstat").write_text("pgfault 10\noom_kill 1\n")
    assert kernel.counts() == {str(tmp_path / "vmstat"): 1}


def test_reading_the_real_log_never_blocks():
    assert isinstance(kernel.log(), str)
