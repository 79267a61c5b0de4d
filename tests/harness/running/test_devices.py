"""Devices and threads of workers."""

from __future__ import annotations

import os

import pytest
import torch

from harness.errors import UsageError
from harness.running.devices import MOST_GPU_THREADS, fault_of, resolve_devices


@pytest.fixture
def machine(monkeypatch):
    """Return a function that pretends a machine of so many cores and GPUs."""

    def pretend(cores, gpus):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
        monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)

    return pretend


@pytest.mark.parametrize(
    ("cores", "gpus", "device", "workers", "devices", "threads"),
    [
        (2, 0, "auto", 0, ("cpu", "cpu"), 1),
        (64, 0, "cpu", 4, ("cpu",) * 4, 16),
        (64, 1, "auto", 0, ("cuda:0",), MOST_GPU_THREADS),  # other sweeps may have the other GPUs of a machine
        (64, 4, "cuda", 0, ("cuda:0", "cuda:1", "cuda:2", "cuda:3"), MOST_GPU_THREADS),
        (8, 4, "auto", 0, ("cuda:0", "cuda:1", "cuda:2", "cuda:3"), 2),
        (64, 4, "cuda:2", 0, ("cuda:2",), MOST_GPU_THREADS),
    ],
)
def test_workers_share_the_cores_and_a_gpu_takes_few(machine, cores, gpus, device, workers, devices, threads):
    machine(cores, gpus)
    assert resolve_devices(device, workers) == (devices, threads)


def test_a_gpu_that_is_not_there_is_named(machine):
    machine(8, 1)
    with pytest.raises(UsageError, match=r"cuda:3.*cuda:0"):
        resolve_devices("cuda:3", 0)
    machine(8, 0)
    with pytest.raises(UsageError, match="sees no CUDA device"):
        resolve_devices("cuda", 0)


def test_a_device_of_no_more_use_is_told_from_one_that_works(monkeypatch):
    def broken(_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ...")

    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    assert fault_of(torch.device("cuda")) == ""
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    assert fault_of(torch.device("cuda")) == "CUDA error: an illegal memory access was encountered"
    assert fault_of(torch.device("cpu")) == ""
