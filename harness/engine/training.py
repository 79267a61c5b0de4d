"""The training loop. There is one, for every method: updates, evaluation, divergence, running out of memory.

What is not here: a step (``pack``), what trials there are (``planning.plan``), which train together
(``running.schedule``, ``running.worker``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from harness.contract.task import Evaluation, check_evaluation
from harness.engine.compiling import compiling
from harness.engine.lane import Lane
from harness.engine.pack import Pack
from harness.engine.resident import Base
from harness.engine.slots import Reader
from harness.errors import TrialDivergedError

logger = logging.getLogger(__name__)


class Watch(Protocol):
    """Whoever wants to know how training goes."""

    def progress(self, lane: Lane, step: int, metrics: Mapping[str, float]) -> None:
        """Take a lane's metrics after an update."""

    def finished(self, lane: Lane) -> None:
        """Take a lane that trained to its end, or stopped with ``lane.error``."""


def train(base: Base, lanes: Sequence[Lane], watch: Watch, compiled: bool = False) -> None:
    """Train lanes together to their ends. Out of memory, each half goes on by itself, from the same step."""
    alone = [lane for lane in lanes if len(lanes) > 1 and not lane.packs()]
    waiting = [[lane for lane in lanes if lane not in alone], *([lane] for lane in alone)]
    waiting = [group for group in waiting if group]
    while waiting:
        group = waiting.pop()
        try:
            _train_together(base, group, watch, compiled)
        except torch.OutOfMemoryError as error:
            running = [lane for lane in group if lane.done < lane.steps and lane.error is None]
            for lane in running:
                if lane.done in lane.recipe.evaluate_at and lane.done not in {each["step"] for each in lane.history}:
                    logger.warning("%s: out of memory while scoring step %d", lane.trial.label, lane.done)
                lane.leave()
            if base.device.type == "cuda":
                torch.cuda.empty_cache()
            if len(running) == 1:
                running[0].error = error
                watch.finished(running[0])
            else:
                middle = len(running) // 2
                waiting += [running[middle:], running[:middle]]


def _train_together(base: Base, lanes: Sequence[Lane], watch: Watch, compiled: bool) -> None:
    pack: Pack | None = Pack(base, lanes, compiled)
    since: list[Tensor] = []  # losses since the last look, still on the device
    start = time.perf_counter()
    while pack is not None:
        since.append(pack.step())
        lane = pack.lanes[0]
        at_evaluation = lane.done in lane.recipe.evaluate_at
        ends = [each for each in pack.lanes if each.done == each.steps]
        if not (ends or at_evaluation or lane.done % _interval(lane.steps) == 0):
            continue
        losses = torch.stack(since).double().cpu()  # the one place that waits for the device
        alive = [each for each in pack.lanes if each.error is None]
        seconds = (time.perf_counter() - start) / len(alive)
        gone: list[Lane] = []
        for number, each in enumerate(pack.lanes):
            if each.error is not None:
                continue
            each.train_seconds += seconds
            each.pack_lanes, each.compiled = max(each.pack_lanes, len(alive)), pack.compiled
            if not torch.isfinite(losses[:, number]).all():
                place = int((~torch.isfinite(losses[:, number])).nonzero()[0])
                step = each.done - len(since) + place + 1
                each.error = TrialDivergedError(f"the training loss became {losses[place, number]} at step {step}")
                gone.append(each)
                continue
            rate = each.rates[0] * each.multipliers[each.done - 1]
            metrics = {"train/loss": float(losses[-1, number]), "train/learning_rate": rate}
            if at_evaluation and each not in ends:
                metrics |= _evaluate(base, each, "validation").metrics_present()
            each.history.append({"step": each.done, "metrics": metrics})
            watch.progress(each, each.done, metrics)
        for each in ends:
            if each.error is None:
                try:
                    split = "test" if each.trial.purpose == "report" else "validation"
                    each.evaluation = _evaluate(base, each, split)
                    if split == "validation":  # a curve is of one split
                        each.history[-1]["metrics"] |= each.evaluation.metrics_present()
                except Exception as error:  # noqa: BLE001 - a failing evaluation is that trial's result
                    each.error = error
                gone.append(each)
        for each in gone:
            watch.finished(each)
        # A pack of another size must be compiled again, so there a few diverged lanes are carried along, unheeded.
        few = 2 * (len(alive) - len(gone)) >= len(pack.lanes)
        if gone and (ends or not (pack.compiled and few)):
            pack = pack.without([each for each in pack.lanes if each.error is not None or each in gone])
        since, start = [], time.perf_counter()


def _evaluate(base: Base, lane: Lane, split: str) -> Evaluation:
    start = time.perf_counter()
    with evaluating(base, lane) as model:
        result = check_evaluation(base.task, base.task.evaluate(model, lane.context, lane.data.splits[split]))
    lane.evaluate_seconds += time.perf_counter() - start
    return result


def _interval(steps: int) -> int:
    """Return after how many updates to look at the losses: about a hundred looks per trial."""
    return max(1, steps // 100)


@contextmanager
def evaluating(base: Base, lane: Lane) -> Iterator[nn.Module]:
    """Yield the model with one lane's modules active, in evaluation mode and without gradients."""
    model = lane.private if lane.private is not None else base.model
    for name, module in lane.trained().items():
        module.eval()
        base.slots[name].parts = ((Reader(module, base.dtype), 1),)
    try:
        with torch.no_grad(), compiling(False):
            yield model
    finally:
        base.clear()
