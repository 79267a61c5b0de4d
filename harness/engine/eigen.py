"""Eigenvectors of many symmetric matrices at once on an NVIDIA GPU.

``torch.linalg.eigh`` decomposes a batch one matrix after another, and one alone leaves most of a GPU idle: 168 matrices
of 768 x 768 in float64 take 1.3 s on an H200. cuSOLVER has a driver for batches, ``cusolverDnXsyevBatched`` (since
CUDA 12.6, documented in NVIDIA's cuSOLVER manual, section 2.4.2), which takes 0.17 s and which PyTorch does not call
(as of 2.11). It is called here from the library that PyTorch itself has loaded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

VECTORS, LOWER = 1, 0  # cusolverEigMode_t, cublasFillMode_t
CUDA_TYPES = {torch.float32: 0, torch.float64: 1}  # cudaDataType
LARGEST_BATCHED = 2048  # beyond this size one matrix keeps the GPU busy by itself


def symmetric_eigen(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return what ``torch.linalg.eigh`` does: ascending eigenvalues (N, n) and eigenvectors in columns (N, n, n).

    Args:
        matrices: Symmetric, (N, n, n), float32 or float64.
    """
    solver = _solver(matrices.device) if matrices.is_cuda and 1 < len(matrices) else None
    if solver is None or matrices.shape[-1] > LARGEST_BATCHED:
        return tuple(torch.linalg.eigh(matrices))
    return solver.eigen(matrices)


@cache
def _solver(device: torch.device) -> _BatchedSolver | None:
    """Return the batched solver of a device; ``None`` where its library has none, e.g. before CUDA 12.6."""
    torch.linalg.eigh(torch.eye(2, device=device))  # loads PyTorch's own copy of the library
    for name in ("libcusolver.so.12", "libcusolver.so.11", "cusolver64_12.dll", "cusolver64_11.dll"):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        if hasattr(library, "cusolverDnXsyevBatched"):
            return _BatchedSolver(library, device)
    return None


class _BatchedSolver:
    """cuSOLVER's batched symmetric eigensolver on one device."""

    def __init__(self, library: ctypes.CDLL, device: torch.device) -> None:
        self.library, self.device = library, device
        self.handle, self.parameters = ctypes.c_void_p(), ctypes.c_void_p()
        with torch.cuda.device(device):
            self._call("cusolverDnCreate", ctypes.byref(self.handle))
            self._call("cusolverDnCreateParams", ctypes.byref(self.parameters))

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self.library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name} failed with cuSOLVER status {status}")

    def eigen(self, matrices: Tensor) -> tuple[Tensor, Tensor]:
        """Return eigenvalues (N, n) and eigenvectors (N, n, n) of symmetric matrices (N, n, n)."""
        count, n = matrices.shape[:2]
        vectors = matrices.contiguous().clone()  # overwritten; symmetric, so row and column order are the same
        values = matrices.new_empty(count, n)
        failed = torch.zeros(count, dtype=torch.int32, device=self.device)
        kind, size = ctypes.c_int(CUDA_TYPES[matrices.dtype]), ctypes.c_int64(n)
        problem: Sequence[object] = (
            self.handle, self.parameters, ctypes.c_int(VECTORS), ctypes.c_int(LOWER), size,
            kind, _address(vectors), size, kind, _address(values), kind,
        )  # fmt: skip
        on_device, on_host = ctypes.c_size_t(), ctypes.c_size_t()
        with torch.cuda.device(self.device):
            stream = torch.cuda.current_stream(self.device)
            self._call("cusolverDnSetStream", self.handle, ctypes.c_void_p(stream.cuda_stream))
            self._call(
                "cusolverDnXsyevBatched_bufferSize", *problem,
                ctypes.byref(on_device), ctypes.byref(on_host), ctypes.c_int64(count),
            )  # fmt: skip
            work = torch.empty(max(1, on_device.value), dtype=torch.uint8, device=self.device)
            host_work = ctypes.create_string_buffer(max(1, on_host.value))
            self._call(
                "cusolverDnXsyevBatched", *problem,
                _address(work), on_device, host_work, on_host, _address(failed), ctypes.c_int64(count),
            )  # fmt: skip
        if failed.any():  # waits for the device, before host_work goes
            raise RuntimeError(f"eigenvalues of matrix {int(failed.nonzero()[0])} of {count} did not converge")
        return values, vectors.mT  # in columns


def _address(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
