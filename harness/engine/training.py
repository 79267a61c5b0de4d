"""The training loop. There is one, for every method: updates, evaluation, divergence, running out of memory.

What is not here: a step (``pack``), what trials there are (``planning.plan``), which train together
(``running.schedule``, ``running.worker``).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from harness.contract.task import BEST, BEST_LOSS, Evaluation, check_evaluation
from harness.engine.compiling import compiling
from harness.engine.evaluation import training_loss
from harness.engine.lane import Lane
from harness.engine.memory import let_go, release
from harness.engine.pack import HalfDoneError, Pack
from harness.engine.resident import Base
from harness.errors import HarnessError, TrialDivergedError

logger = logging.getLogger(__name__)

EVERY_STEP = 100  # updates at the start of which every one is kept in the history


class Watch(Protocol):
    """Whoever wants to know how training goes."""

    def progress(self, lane: Lane, step: int, metrics: Mapping[str, float]) -> None:
        """Take a lane's metrics after an update."""

    def finished(self, lane: Lane) -> None:
        """Take a lane that trained to its end, or stopped with ``lane.error``."""


class Saver(Protocol):
    """Whoever wants to keep lanes that are not at their end yet."""

    def is_due(self) -> bool:
        """Return whether ``save`` is wanted now; asked after every update."""

    def save(self, lanes: Sequence[Lane]) -> None:
        """Keep lanes that are between two updates. May end the training, by raising no ``Exception``."""


def train(base: Base, lanes: Sequence[Lane], watch: Watch, compiled: bool = False, saver: Saver | None = None) -> None:
    """Train lanes together to their ends. Out of memory, they go on from the same step with less of it (``_less``)."""
    for lane in (each for each in lanes if not each.steps):
        _end(base, lane)
        watch.finished(lane)
    lanes = [lane for lane in lanes if lane.steps]
    alone = [lane for lane in lanes if len(lanes) > 1 and not lane.packs()]
    together: dict[tuple[int, ...], list[Lane]] = {}  # of lanes that go on, only equals can be packed
    for lane in (each for each in lanes if each not in alone):
        together.setdefault((lane.done, lane.rows_at_once, lane.recomputes), []).append(lane)
    waiting = [*together.values(), *([lane] for lane in alone)]
    while waiting:
        group = waiting.pop()
        error = _try_together(base, group, watch, compiled, saver)
        base.forget()
        if error is None:
            continue
        # Only here, where no frame of what failed is left, is its memory free.
        release(base.device)
        running = [lane for lane in group if lane.done < lane.steps and lane.error is None]
        for lane in running:
            if lane.done in lane.recipe.evaluate_at and not _is_scored(base, lane):
                logger.warning("%s: out of memory while scoring step %d", lane.trial.label, lane.done)
            lane.leave()
        groups = [] if isinstance(error, HalfDoneError) else _less(base, running)
        waiting += groups
        for lane in running if not groups else []:
            lane.error = error
            watch.finished(lane)


def _try_together(
    base: Base, lanes: Sequence[Lane], watch: Watch, compiled: bool, saver: Saver | None
) -> torch.OutOfMemoryError | None:
    """Train lanes together; return the error where memory ran out, without the frames that hold on to memory."""
    try:
        _train_together(base, lanes, watch, compiled, saver)
    except torch.OutOfMemoryError as error:
        let_go(error)
        return error
    return None


def _less(base: Base, lanes: Sequence[Lane]) -> list[list[Lane]]:
    """Return groups of the lanes, the first to train last, that need less memory; none where nothing is left to try.

    Halves of the lanes; then, alone, with activations computed again; then with half the examples per forward pass. The
    result is the same each time.
    """
    if base.ranks.count > 1:  # the others may have memory left, and are in the middle of the step
        return []
    if len(lanes) > 1:
        middle = len(lanes) // 2
        return [list(lanes[middle:]), list(lanes[:middle])]
    for lane in lanes:
        size = lane.rows_at_once
        if not (lane.recomputes or base.recomputes) and base.can_recompute:
            lane.recomputes = True
            logger.warning("%s: out of memory; goes on with activations computed again", lane.trial.label)
        elif size > 1:
            lane.rows_at_once = -(-size // 2)
            logger.warning(
                "%s: out of memory; goes on with %d examples per forward pass", lane.trial.label, lane.rows_at_once
            )
        else:
            return []
        return [[lane]]
    return []


def _train_together(base: Base, lanes: Sequence[Lane], watch: Watch, compiled: bool, saver: Saver | None) -> None:
    pack: Pack | None = Pack(base, lanes, compiled)
    # Losses and norms since the last look, still on the device; of lanes that go on, some were saved.
    since = [*torch.stack([lane.pending for lane in pack.lanes], 2)] if pack else []
    for lane in lanes:
        lane.pending = torch.zeros(0, 2)
    start = time.perf_counter()
    while pack is not None:
        since.append(pack.step())
        lane = pack.lanes[0]
        at_evaluation = lane.done in lane.recipe.evaluate_at
        ends = [each for each in pack.lanes if each.done == each.steps]
        if not (ends or at_evaluation or lane.done % _interval(lane.steps) == 0):
            if saver is not None and saver.is_due():
                start = _save(saver, pack, since, start)
            continue
        seen = torch.stack(since).double().cpu()  # the one place that waits for the device
        alive = [each for each in pack.lanes if each.error is None]
        seconds = (time.perf_counter() - start) / len(alive)
        gone: list[Lane] = []
        for each in alive:
            each.train_seconds += seconds
            each.pack_lanes, each.compiled = max(each.pack_lanes, len(alive)), pack.compiled
            try:
                _note(each, seen[:, :, pack.lanes.index(each)])
            except TrialDivergedError as error:
                each.error = error
                gone.append(each)
        for each in alive:
            if each.error is None:
                if at_evaluation and each not in ends:
                    _validate(base, each)
                watch.progress(each, each.done, each.history[-1]["metrics"])
        if len(ends) == len(pack.lanes):
            pack.close()  # scoring wants memory too
            release(base.device)
        for each in ends:
            if each.error is None:
                _end(base, each)
                gone.append(each)
        for each in gone:
            watch.finished(each)
        # A pack of another size is captured, maybe compiled again, so a few diverged lanes are carried along, unheeded.
        few = 2 * (len(alive) - len(gone)) >= len(pack.lanes)
        if gone and (ends or not ((pack.compiled or base.device.type == "cuda") and few)):
            pack = pack.without([each for each in pack.lanes if each.error is not None or each in gone])
        since, start = [], time.perf_counter()
        if saver is not None and pack is not None and saver.is_due():
            start = _save(saver, pack, since, start)


def _save(saver: Saver, pack: Pack, since: Sequence[Tensor], start: float) -> float:
    """Let a pack's lanes be saved, their time up to now counted. Return the time from which to count on."""
    alive = [lane for lane in pack.lanes if lane.error is None]
    for number, lane in enumerate(pack.lanes):
        lane.pending = torch.stack([each[:, number] for each in since]) if since else torch.zeros(0, 2)
    seconds = (time.perf_counter() - start) / max(1, len(alive))
    for lane in alive:
        lane.train_seconds += seconds
        lane.pack_lanes, lane.compiled = max(lane.pack_lanes, len(alive)), pack.compiled
    saver.save(alive)
    for lane in pack.lanes:
        lane.pending = torch.zeros(0, 2)
    return time.perf_counter()


def _note(lane: Lane, seen: Tensor) -> None:
    """Put a lane's updates since the last look into its history.

    Kept are the first hundred, those at which a look is due anyway, and the last one.

    Args:
        lane: Which.
        seen: Their losses and gradients' norms, (N, 2).

    Raises:
        TrialDivergedError: A loss is not finite.
    """
    for step, (loss, norm) in enumerate(seen.tolist(), lane.done - len(seen) + 1):
        if not math.isfinite(loss):
            raise TrialDivergedError(f"the training loss became {loss} at step {step}")
        if step <= EVERY_STEP or step % _interval(lane.steps) == 0 or step == lane.done:
            rate = lane.rates[0] * lane.multipliers[step - 1]
            metrics = {"train/loss": loss, "train/gradient_norm": norm, "train/learning_rate": rate}
            lane.history.append({"step": step, "metrics": metrics})


def _is_scored(base: Base, lane: Lane) -> bool:
    """Return whether a lane's last update was scored on validation."""
    last: dict[str, Any] = lane.history[-1] if lane.history else {"step": 0}
    return last["step"] == lane.done and base.task.main_metric in last["metrics"]


def _validate(base: Base, lane: Lane) -> Evaluation:
    """Score a lane on validation, note that, and keep what it is now if the recipe asks for the best."""
    found = _evaluate(base, lane, "validation")
    if not lane.history:
        lane.history.append({"step": 0, "metrics": {}})
    lane.history[-1]["metrics"] |= found.metrics_present()
    name, chooses_by = base.task.main_metric, lane.recipe.checkpoint
    if chooses_by == BEST:
        score = found.metrics[name]  # a judge may say something else to each rank
        lane.consider(base.ranks.told(lambda: score), base.task.metrics[name].higher_is_better)
    elif chooses_by == BEST_LOSS:
        loss = _validation_loss(base, lane)
        lane.history[-1]["metrics"]["validation/loss"] = loss
        lane.consider(base.ranks.told(lambda: loss), higher_is_better=False)
    return found


def _end(base: Base, lane: Lane) -> None:
    """Score a lane at its end. A failing evaluation is that trial's result."""
    try:
        _score(base, lane)
    except Exception as error:  # noqa: BLE001
        let_go(error)  # other lanes are scored next, and want the memory
        base.forget()
        lane.error = error


def _score(base: Base, lane: Lane) -> None:
    """Score a lane at its end: on test, or on validation where it only chooses; of several updates, the best."""
    is_report, chooses = lane.trial.purpose == "report", lane.recipe.checkpoint != "last"
    if chooses or not is_report:  # a curve is of one split
        lane.evaluation = _validate(base, lane)
    if chooses:
        lane.go_back()
    if is_report or (chooses and lane.best and lane.best.step != lane.done):
        lane.evaluation = _evaluate(base, lane, "test" if is_report else "validation")


def _validation_loss(base: Base, lane: Lane) -> float:
    examples = base.task.validation_examples(lane.data.splits["validation"])
    if not examples:
        raise HarnessError(f"task {base.task.name!r}: validation_examples() returned none, so nothing has a loss")
    with evaluating(base, lane) as model:
        pad_token = lane.context.tokenizer.pad_token_id
        return training_loss(model, base.task.model_kind, examples, pad_token, lane.recipe.rows_at_once)


def _evaluate(base: Base, lane: Lane, split: str) -> Evaluation:
    with evaluating(base, lane) as model:
        return check_evaluation(base.task, base.task.evaluate(model, lane.context, lane.data.splits[split]))


def _interval(steps: int) -> int:
    """Return after how many updates to look at the losses: about a hundred looks per trial."""
    return max(1, steps // 100)


@contextmanager
def evaluating(base: Base, lane: Lane) -> Iterator[nn.Module]:
    """Yield the model with one lane's modules active, in evaluation mode and without gradients; count how long."""
    start = time.perf_counter()
    model = lane.private if lane.private is not None else base.model
    for module in lane.trained().values():
        module.eval()
    base.read(lane.trained())
    try:
        with torch.no_grad(), compiling(False):
            yield model
    finally:
        base.clear()
        lane.evaluate_seconds += time.perf_counter() - start
