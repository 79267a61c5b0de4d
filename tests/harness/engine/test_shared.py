"""What trials share is loaded once, and a trial that needs something else gets it."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from harness.engine.shared import MOST_DATA, Shared
from harness.planning.plan import plan_cells
from harness.planning.registry import build_registry
from harness.planning.search import pending
from harness.planning.suite import build_suite

torch.set_num_threads(1)
REGISTRY = build_registry()
TASK = REGISTRY.task("uuid")


def trials_of(precision="float32", **suite):
    recipe = {"steps": 2, "pairs": 4, "batch_size": 2, "evaluate_at": []}
    asked = {"tasks": ["uuid"], "methods": ["lora"], "recipe": recipe, **suite}
    return pending(plan_cells(build_suite(asked), REGISTRY, None, precision), lambda trial: None)


def code(trial):
    return REGISTRY.method(trial.method), TASK()


@pytest.fixture
def shared():
    return Shared(torch.device("cpu"))


def test_trials_alike_get_the_same_base_and_data_and_lanes_of_their_own(shared):
    first, second = (shared.lane(trial, *code(trial)) for trial in trials_of(seeds=[0, 1]))
    assert first.base is second.base
    assert first.data is not second.data, "this task draws its data from the seed"
    (trial,) = trials_of(methods=["mora"])
    other = shared.lane(trial, *code(trial))
    assert other.base is first.base
    assert other.data is first.data
    assert not {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}


def test_a_base_of_another_precision_takes_the_place_of_the_last(shared):
    (single,), (half,) = trials_of(), trials_of("bfloat16")
    first = shared.base(single, TASK())
    assert shared.base(half, TASK()).dtype is torch.bfloat16
    again = shared.base(single, TASK())
    assert again is not first
    assert again.dtype is torch.float32


def test_what_is_loaded_is_not_searched_for_garbage_and_goes_when_another_base_comes(shared):
    (single,), (half,) = trials_of(), trials_of("bfloat16")
    shared.solo_cost(single, *code(single))
    assert gc.get_freeze_count() > 100_000, "libraries and the base"
    gc.collect()
    assert not [each for each in gc.get_objects() if each is shared.base(single, TASK()).model]
    model = weakref.ref(shared.base(single, TASK()).model)
    shared.base(half, TASK())
    gc.collect()
    assert model() is None


def test_the_oldest_data_makes_room(shared, monkeypatch):
    loaded, load = [], TASK.load

    def counted(self, context):
        loaded.append(context.seed)
        return load(self, context)

    monkeypatch.setattr(TASK, "load", counted)
    trials = trials_of(seeds=list(range(MOST_DATA + 1)))
    for trial in [*trials, trials[1], trials[0]]:
        shared.lane(trial, *code(trial))
    assert loaded == [*range(MOST_DATA + 1), 0], "the second was still there, the first was not"


def test_a_cost_is_measured_once_for_all_seeds_and_rates(shared):
    trials = [*trials_of(seeds=[0, 1]), *trials_of(learning_rates=[0.5])]
    costs = [shared.solo_cost(trial, *code(trial)) for trial in trials]
    assert costs[0] is costs[1] is costs[2]
    (other,) = trials_of(methods=["mora"])
    assert shared.solo_cost(other, *code(other)) is not costs[0]


def test_a_method_that_trains_another_number_than_it_says_is_refused(shared, monkeypatch):
    (trial,) = trials_of()
    method, task = code(trial)
    adapter = method.adapter

    def more(self, linear, generator):
        built = adapter(self, linear, generator)
        built.extra = torch.nn.Parameter(torch.zeros(1))
        return built

    monkeypatch.setattr(method, "adapter", more)
    with pytest.raises(RuntimeError, match=rf"its formula says {trial.adapter_parameters:,}.*harness check lora"):
        shared.lane(trial, method, task)
