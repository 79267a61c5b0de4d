"""A base model that is divided over two processes trains, scores and leaves what one process would have."""

from __future__ import annotations

import os
import traceback
import weakref
from dataclasses import dataclass

import pytest
import torch
from torch.distributed import TCPStore

from harness.contract.task import Evaluation
from harness.engine.ranks import Together
from harness.engine.resident import Base
from harness.engine.sharding import load_divided

MORE_ROWS = {"batch_size": 5, "micro_batch_size": 2}  # three micro-batches: the second rank runs one for nothing


@dataclass
class Run:
    """A lane to train: of which method on which model, and how."""

    method: str
    model: str = "language"
    changes: dict | None = None
    recipe: dict | None = None
    recomputes: bool = False

    def __str__(self):
        return f"{self.method} {self.model} {self.recipe or ''}{' recomputed' * self.recomputes}"


FEW = [
    Run("lora"),
    Run("lora", recipe=MORE_ROWS, changes={"dropout": 0.2}),
    Run("mora", recomputes=True),
    Run("dora", changes={"dropout": 0.2}, recipe={"micro_batch_size": 1}),
    Run("relora", changes={"merge_every": 4}),
    Run("remora", changes={"merge_every": 4}),
    Run("lora", "trained"),
    Run("lora", "encoder"),
]


def model_of(kit, run):
    return kit.classifier("encoder") if run.model == "encoder" else kit.language_model()


def task_of(kit, run):
    kind = kit.ToyClassification if run.model == "encoder" else kit.ToyTask
    trains = {"encoder": ("classifier",), "trained": ("lm_head", "*norm*"), "language": ()}[run.model]
    own = {"trains": trains, **({"evaluate": score} if run.model == "encoder" else {})}
    return type("Toy", (kind,), own)()


def score(task, model, context, split):
    logits = model(input_ids=torch.tensor([row[:4] for row in split])).logits
    return Evaluation({"loss": float(logits.square().mean())})


def trained(kit, run, base):
    """Train; return losses and the gradient's norms, what the end scores, and what is left."""
    lane = kit.make_lane(base, run.method, changes=run.changes, **run.recipe or {})
    recorder = kit.run(base, [lane])
    (lane,) = recorder.finished_lanes
    if lane.error:
        raise lane.error
    numbers = [[each["metrics"][f"train/{name}"] for name in ("loss", "gradient_norm")] for each in lane.history]
    return torch.tensor(numbers, dtype=torch.float64), lane.evaluation.metrics, lane.state()


class Watched(Together):
    """Takes note of how many elements of whole tensors are there at once while a model is divided."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.seen, self.most = [], 0

    def send(self, tensor):
        super().send(tensor)
        self.seen.append(weakref.ref(tensor))
        self.most = max(self.most, sum(each.numel() for ref in self.seen if (each := ref()) is not None))


def rank(kit, number, port, runs, path):
    ranks = Watched(number, 2, TCPStore("127.0.0.1", port, 2, is_master=False), "cpu")
    found = []
    for run in runs:
        whole, task = model_of(kit, run), task_of(kit, run)

        def empty(whole=whole):
            with torch.device("meta"):
                return type(whole)(whole.config).double()

        model, _ = load_divided(lambda whole=whole: (whole, []), empty, task.trains, ranks, torch.device("cpu"))
        base = Base(model, task, "float64", recomputes=run.recomputes, ranks=ranks)
        kept = sum(getattr(each, "to_local", lambda each=each: each)().numel() for each in model.parameters())
        found.append((*trained(kit, run, base), kept, base.parameters, ranks.most))
        ranks.seen, ranks.most = [], 0
    torch.save(found, path)


def two_ranks(kit, folder, runs):
    """Return what each of two processes finds. They are forked: what they need is loaded already."""
    meeting = TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    children = []
    for number in range(2):
        child = os.fork()
        if not child:
            try:
                rank(kit, number, meeting.port, runs, folder / str(number))
                os._exit(0)
            except Exception:  # noqa: BLE001 - this process ends here
                traceback.print_exc()
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    return [torch.load(folder / str(number), weights_only=True) for number in range(2)]


def check(kit, folder, runs):
    for run, first, second in zip(runs, *two_ranks(kit, folder, runs), strict=True):
        base = Base(model_of(kit, run), task_of(kit, run), "float64")
        numbers, metrics, state = trained(kit, run, base)
        torch.testing.assert_close(first[0], numbers, rtol=1e-6, atol=0, msg=lambda text, run=run: f"{run}: {text}")
        assert first[1] == pytest.approx(metrics, rel=1e-9), str(run)
        assert first[2].keys() == state.keys()
        for name, value in state.items():
            torch.testing.assert_close(first[2][name], value, rtol=1e-9, atol=1e-10, msg=lambda text, run=run: f"{run}")
            assert torch.equal(first[2][name], second[2][name]), f"{run}: both have the same adapter, bit for bit"
        kept, whole, most = second[3:]
        assert first[3] == kept < 0.65 * whole, f"{run}: each keeps half of the blocks"
        outside = 2 * kept - whole
        assert most <= outside + (whole - outside) / 2, f"{run}: one of the two blocks is whole at once, not both"


def test_two_processes_train_what_one_would(kit, tmp_path):
    check(kit, tmp_path, FEW)


@pytest.mark.exhaustive
def test_two_processes_train_what_one_would_with_every_method(kit, tmp_path):
    check(kit, tmp_path, [Run(name) for name in kit.packable if name != "lora-ga"])
