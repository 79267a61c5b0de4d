"""Steps on a GPU: what a step launches is captured in a CUDA graph, once per form of batch, and replayed from then on.

Launching thousands of small kernels from Python costs more than running them. Forms that are known beforehand are
captured before the first step, the largest first, and all share one pool of memory, as large as the largest needs.

What is not here: what a step does (``pack``), which forms there are (``forms``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.engine.batch import Batch
from harness.engine.capture import capture

logger = logging.getLogger(__name__)

Step = Callable[[Sequence[Batch]], Tensor]
Form = tuple[Any, ...]
MOST_GRAPHS = 32  # batches of further forms run uncaptured


class Replay:
    """Runs steps; captured ones where it can.

    Args:
        step: What to do with a step's batches; waits for nothing on the device.
        rehearse: Does what needs doing once before ``step`` can be captured, and leaves no trace.
        device: A GPU.
        rehearses_all: Whether every form must be rehearsed, and not the largest alone.
        parameters: Whose gradients are read between steps.
        what: For messages.
    """

    def __init__(
        self,
        step: Step,
        rehearse: Callable[[Sequence[Batch]], None],
        device: torch.device,
        rehearses_all: bool,
        parameters: Sequence[nn.Parameter],
        what: str,
    ) -> None:
        self.step, self.rehearse, self.device = step, rehearse, device
        self.rehearses_all, self.parameters, self.what = rehearses_all, parameters, what
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[Form, _Graph | None] = {}  # None: it cannot be captured

    def prepare(self, batches: Mapping[Form, Sequence[Batch]]) -> None:
        """Capture steps of these forms, given with batches of each, on the host. Nothing is computed."""
        largest_first = sorted(batches, key=lambda form: -sum(each.input_ids.numel() for each in batches[form]))
        inputs = {form: [batch.to(self.device) for batch in batches[form]] for form in largest_first}
        outside = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(outside)
        with torch.cuda.stream(self.stream):
            for number, form in enumerate(largest_first):
                if self.rehearses_all or not (number or self._graphs):
                    self.rehearse(inputs[form])
            torch.cuda.empty_cache()  # what the rehearsal took is of no use to captured steps, which have their pool
            for form in largest_first:
                self._graphs[form] = self._capture(inputs[form])
        outside.wait_stream(self.stream)

    def __call__(self, batches: Sequence[Batch]) -> Tensor:
        """Do a step with batches on the host, and return what ``step`` does."""
        form = form_of(batches)
        if form not in self._graphs and len(self._graphs) < MOST_GRAPHS:
            self.prepare({form: batches})
        graph = self._graphs.get(form)
        outside = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(outside)
        with torch.cuda.stream(self.stream):
            if graph is None:
                result = self.step([batch.to(self.device) for batch in batches])
            else:
                result = graph.replay(batches)
        outside.wait_stream(self.stream)
        return result

    def _capture(self, inputs: Sequence[Batch]) -> _Graph | None:
        """Return the captured step; where something in it cannot be captured, ``None``, and say so."""
        generator = torch.cuda.default_generators[self.device.index or 0]
        try:
            return _Graph(self.step, inputs, self.stream, self._pool, self.parameters)
        except RuntimeError as error:  # running out of memory is one, too
            generator.graphsafe_set_state(torch.Generator(self.device).graphsafe_get_state())  # still "capturing"
            if isinstance(error, torch.OutOfMemoryError):
                raise
            logger.warning("a step of %s cannot be captured in a CUDA graph, and runs slower: %s", self.what, error)
            logger.debug("", exc_info=True)
            return None


def form_of(batches: Sequence[Batch]) -> Form:
    """Return what batches of one form share."""
    return tuple(batch.shape() for batch in batches)


class _Graph:
    """One captured step: fixed input tensors, and the kernels that a step launches."""

    def __init__(
        self,
        step: Step,
        inputs: Sequence[Batch],
        stream: torch.cuda.Stream,
        pool: Any,
        parameters: Sequence[nn.Parameter],
    ) -> None:
        self.inputs = inputs
        self.graph, self.result = capture(lambda: step(inputs), stream, pool)
        self.gradients = [(parameter, parameter.grad) for parameter in parameters]

    def replay(self, batches: Sequence[Batch]) -> Tensor:
        """Run the step on other batches of the same form; return a copy of its result."""
        for old, new in zip(self.inputs, batches, strict=True):
            for name, target in vars(old).items():
                if isinstance(target, Tensor):
                    target.copy_(getattr(new, name).pin_memory(), non_blocking=True)
        self.graph.replay()
        for parameter, gradient in self.gradients:  # steps of other forms left theirs there
            parameter.grad = gradient
        return self.result.clone()
