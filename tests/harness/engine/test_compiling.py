"""Compiled code runs where it is wanted, and the compiler is called nowhere else."""

from __future__ import annotations

import pytest
import torch

from harness.engine.compiling import compiled_if_wanted, compiling


def test_a_function_is_compiled_once_and_only_where_that_is_wanted(monkeypatch):
    compiled = []

    def fake(function, dynamic):
        compiled.append(function.__name__)
        return lambda x: -function(x)

    monkeypatch.setattr(torch, "compile", fake)

    @compiled_if_wanted
    def double(x):
        """Return twice as much."""
        return 2 * x

    assert double.__doc__ == "Return twice as much."
    assert double(1) == 2
    with compiling(False):
        assert double(1) == 2
    assert compiled == []
    with compiling(True):
        assert double(1) == -2
        with compiling(False):  # as a lane is scored, amid training
            assert double(1) == 2
        assert double(2) == -4
    assert compiled == ["double"]
    with pytest.raises(ZeroDivisionError), compiling(True):
        raise ZeroDivisionError
    assert double(1) == 2


def test_a_module_that_somebody_compiled_runs_as_written_where_that_is_not_wanted():
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    class Block(torch.nn.Module):
        def forward(self, x):
            return 2 * x + 1

    block = Block()
    block.compile(backend=backend)
    with compiling(False):
        assert block(torch.ones(1)) == 3
    assert compiled == []
    with compiling(True):
        assert block(torch.ones(1)) == 3
    assert len(compiled) == 1
