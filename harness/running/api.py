"""What the command line does, as functions for notebooks and scripts; records come back as data frames.

import harness
harness.run(data="reviews.csv", model="FacebookAI/roberta-base", methods=["lora", "dora"])
harness.compare("results")
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError, UsageError
from harness.planning.registry import Registry, build_registry
from harness.planning.request import OwnRequest, build_request
from harness.planning.suite import Suite
from harness.results.frame import frame
from harness.results.index import read_root
from harness.results.store import Store

if TYPE_CHECKING:
    import pandas as pd

Names = str | Sequence[str]


def run(
    *, methods: Names | None = None, tasks: Names | None = None, data: str | Path | None = None,
    results: str | Path = "results", quiet: bool = False, device: str = "auto", workers: int = 0, mlflow: bool = False,
    executor: str = "local", shard: int = 1, block: Names = (), **request: Any,
) -> pd.DataFrame:  # fmt: skip
    """Train what no record answers yet, and return one row per trial, as ``read_results`` does.

    Args:
        methods: As ``--methods``.
        tasks: As ``--tasks``.
        data: As ``--data``: a file, folder or hub id instead of tasks.
        results: Result root.
        quiet: Show failures only.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: Processes; 0: one per GPU, two on a CPU.
        mlflow: Whether to track with MLflow, which the command line does unless told otherwise.
        executor: Where they run, as ``--executor``.
        shard: Over how many GPUs a base model is divided.
        block: Plugins to leave out.
        **request: As the options of ``harness run``: ``model``, ``budgets``, ``seeds``, ``tune``, ``tune_seeds``,
            ``halving``, ``scale``, ``learning_rates``, ``targets``, ``precision``, ``quantize``, ``tolerance``,
            ``revision``, ``steps``, ``suite``, ``data_dir``, ``columns``, ``data_kind``, ``labels``, ``metric``,
            ``lower_is_better``, and ``recipe``, a dictionary of what ``--set`` sets. ``None``: not given.

    Raises:
        HarnessError: The request is wrong, or every trial failed.
    """
    from harness.planning.settings import read_executor
    from harness.running.progress import Display
    from harness.running.sweep import How, run_sweep

    left_out = (*_names(block), *(() if mlflow else ("trackers:mlflow",)))
    registry = build_registry(left_out)
    suite, data_dir = _suite(registry, methods, tasks, data, request)
    store = Store(str(results))
    how = How(device=device, workers=workers, shard=shard)
    outcome = run_sweep(
        suite, registry, store, how, Display(quiet), data_dir, left_out, {"command": "harness.run(...)"},
        read_executor(registry, executor),
    )  # fmt: skip
    failed = [each for each in outcome.records if each.state != "complete"]
    if failed and len(failed) == len(outcome.records):
        error = failed[0].error or {}
        raise HarnessError(f"every trial failed; {failed[0].trial.label}: {error.get('message', failed[0].state)}")
    return frame(outcome.records)


def plan(
    *, methods: Names | None = None, tasks: Names | None = None, data: str | Path | None = None,
    results: str | Path = "results", device: str = "auto", block: Names = (), **request: Any,
) -> pd.DataFrame:  # fmt: skip
    """Return what ``run`` would train, one row per trial: ``id``, ``state`` and the trial's fields. Loads no weights.

    Args:
        methods: As of ``run``.
        tasks: As of ``run``.
        data: As of ``run``.
        results: Result root, for what is finished.
        device: As of ``run``.
        block: As of ``run``.
        **request: As of ``run``.
    """
    import pandas as pd

    from harness.running.devices import resolve_devices, resolve_precision
    from harness.running.sweep import plan_sweep

    registry = build_registry(_names(block))
    suite, data_dir = _suite(registry, methods, tasks, data, request)
    precision = resolve_precision(suite.precision, resolve_devices(device, 0)[0][0])
    _, trials, states = plan_sweep(suite, registry, data_dir, precision, Store(str(results)))
    return pd.DataFrame([{"id": each.id, "state": states[each.id], **each.to_json()} for each in trials])


def compare(results: str | Path = "results", task: str = "", block: Names = ()) -> pd.DataFrame:
    """Return every pair of configurations: how far apart their scores are, and whether that is more than chance.

    Args:
        results: Result root.
        task: Of this task only.
        block: Plugins to leave out.

    Raises:
        UsageError: There are no records, or no plug-in compares them.
    """
    import pandas as pd

    records = [each for each in read_root(results) if task in ("", each.trial.task)]
    if not records:
        raise UsageError(f"no records in {str(results)!r} of task {task!r}; run something first")
    found: list[Sequence[Mapping[str, Any]]] = build_registry(_names(block)).hook.harness_compare(records=records)
    if not found:
        raise UsageError("no plug-in compares records; the leaderboard's does (is it blocked?)")
    return pd.DataFrame(list(found[0]))


def _suite(
    registry: Registry, methods: Names | None, tasks: Names | None, data: str | Path | None, request: Mapping[str, Any]
) -> tuple[Suite, Path | None]:
    """Return the suite of a call, and the folder of its local tables."""
    rest = {name: value for name, value in request.items() if value is not None}
    own = OwnRequest(
        where=str(data or ""), columns=_pairs(rest.pop("columns", "")), kind=rest.pop("data_kind", ""),
        labels=",".join(_names(rest.pop("labels", ""))), metric=rest.pop("metric", ""),
        lower_is_better=rest.pop("lower_is_better", False),
    )  # fmt: skip
    recipe = dict(rest.pop("recipe", {}))
    if "steps" in rest:
        recipe["steps"] = rest.pop("steps")
    data_dir = rest.pop("data_dir", None) or (None if data else os.environ.get("HARNESS_DATA_DIR"))
    suite_name = rest.pop("suite", "")
    for name, value in (("methods", methods), ("tasks", tasks), ("targets", rest.pop("targets", None))):
        if value is not None:
            rest[name] = _names(value)
    for name in ("budgets", "learning_rates"):
        if isinstance(rest.get(name), str | int | float):
            rest[name] = [rest[name]]
    if isinstance(seeds := rest.get("seeds"), int | range):
        rest["seeds"] = list(range(seeds) if isinstance(seeds, int) else seeds)
    return build_request(registry, rest, recipe, suite_name, Path(data_dir) if data_dir else None, own)


def _names(value: Names) -> list[str]:
    from harness.planning.choices import split_names

    return split_names(value) if isinstance(value, str) else list(value)


def _pairs(value: str | Mapping[str, str]) -> str:
    return value if isinstance(value, str) else ",".join(f"{role}={column}" for role, column in value.items())
