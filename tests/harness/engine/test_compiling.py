"""Compiled code runs as such only where that is wanted."""

from __future__ import annotations

import torch

from harness.engine.compiling import compiling


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
