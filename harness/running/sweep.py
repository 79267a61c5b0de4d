"""A sweep from its suite to its records: planned, trained, looked at again until nothing is left to do.

What is not here: what a user may say (``cli``, ``api``), one trial (``worker``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from harness.contract.executor import Executor
from harness.contract.looks import KEY
from harness.contract.record import Record, State
from harness.contract.trial import Trial
from harness.errors import UsageError
from harness.planning.plan import plan_cells
from harness.planning.published import read_published
from harness.planning.registry import Registry
from harness.planning.retry import Retry
from harness.planning.search import Cell, pending, wanted
from harness.planning.suite import Suite
from harness.results.catalogue import write_catalogue
from harness.results.store import Store
from harness.running.devices import divide_devices, parse_pack, resolve_precision
from harness.running.environment import conditions, describe_environment
from harness.running.local import LocalExecutor
from harness.running.looking import Looking, names
from harness.running.observers import Observers
from harness.running.progress import Display
from harness.running.redaction import redact
from harness.running.schedule import Scheduler, Settings


@dataclass(frozen=True, kw_only=True)
class How:
    """How to run, as the user says it.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: Most at once; 0: what the executor takes to be there, on this machine one per GPU, two on a CPU.
        pack: Most trials to train together: ``auto``, ``off`` or a number.
        compiled: Whether to compile the model's repeated block: ``auto``, ``on`` or ``off``.
        recomputes: Whether the backward pass computes activations again instead of keeping them.
        trial_seconds: Time limit of one trial; 0: none.
        checkpoint_seconds: How often trials in training are saved.
        allow_code_execution: Whether model-written code may run.
        retry: End states to try again.
        shard: Over how many devices a worker divides its base model.
    """

    device: str = "auto"
    workers: int = 0
    pack: str = "auto"
    compiled: str = "auto"
    recomputes: bool = False
    trial_seconds: float = 0.0
    checkpoint_seconds: float = 60.0
    allow_code_execution: bool = False
    retry: tuple[State, ...] = ()
    shard: int = 1


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a sweep.

    Attributes:
        records: Of every trial that was wanted, also of those that were there before.
        results: The result root that they are in.
        trained: How many trials ran.
        observers: Who watched; ``summary`` asks them what they have to say.
    """

    records: tuple[Record, ...]
    results: str
    trained: int
    observers: Observers

    def summary(self) -> str:
        """Return what plugins have to say about the sweep, usually a table.

        A plugin that fails here loses its own text only, and is counted as an observer that failed.
        """
        said = self.observers.call("harness_summarize", records=self.records, results=self.results)
        return "\n".join(str(text) for text in said if text is not None)


def _search_plan(suite: Suite) -> dict[str, Any]:
    plan = {"rates": suite.tune, "seeds": suite.tune_seeds}
    return {**plan, "halves": True} if suite.halving else plan


def plan_sweep(
    suite: Suite, registry: Registry, data_dir: Path | None, precision: str, store: Store, shard: int = 1
) -> tuple[list[Cell], list[Trial], dict[str, str]]:
    """Return the cells of a suite, every trial that is known to be needed, and by id how far each is."""
    there = store.ids()
    look_up_id = cache(lambda trial_id: store.read(trial_id) if trial_id in there else None)

    def look_up(trial: Trial) -> Record | None:
        return look_up_id(trial.id)

    cells = plan_cells(suite, registry, data_dir, precision, shard)
    if suite.looks is not None:
        looking = Looking(suite.looks, registry, look_up)
        looking.check(cells)
        while not pending(cells, look_up) and (further := looking.further(cells)) is not None:
            cells = further
    trials = [trial for cell in cells for trial in wanted(cell, look_up)]
    states = {trial.id: record.state.value if (record := look_up(trial)) else "to do" for trial in trials}
    return cells, trials, states


def _workers(executor: Executor, how: How) -> tuple[tuple[str, ...], int, tuple[tuple[str, ...], ...]]:
    """Return each worker's device, threads per process, and the devices of each worker's ranks, if it has several.

    Raises:
        UsageError: There are not so many, or what is asked for is not possible with several.
    """
    if how.shard == 1:
        return *executor.devices(how.device, how.workers), ()
    if not isinstance(executor, LocalExecutor):
        raise UsageError(f"--shard divides a model over devices of one machine, not on {executor.title}; leave one out")
    if how.pack not in ("auto", "off", "1") or how.compiled == "on":
        raise UsageError(
            "--shard: a model that is divided trains one trial at a time, uncompiled; leave out --pack and --compile"
        )
    wants_gpu = how.device.startswith("cuda") or (how.device == "auto" and torch.cuda.is_available())
    wanted = how.workers * how.shard or (0 if wants_gpu else how.shard)
    devices, threads = executor.devices(how.device, wanted)
    ranks = divide_devices(devices, how.shard)
    return tuple(group[0] for group in ranks), threads, ranks


def run_sweep(
    suite: Suite, registry: Registry, store: Store, how: How, display: Display, data_dir: Path | None = None,
    block: tuple[str, ...] = (), environment: Mapping[str, Any] | None = None,
    executor: Executor | None = None,
) -> Outcome:  # fmt: skip
    """Train what no record answers yet.

    Args:
        suite: What to run.
        registry: Finds methods and tasks.
        store: Where records are and go.
        how: How to run it.
        display: Shows how far it is.
        data_dir: Local tables.
        block: Plugins that workers leave out.
        environment: What else goes into every record.
        executor: Where workers run; ``None``: on this machine.
    """
    executor = executor or LocalExecutor()
    devices, threads, ranks = _workers(executor, how)
    given: dict[str, Any] = {
        "pack": parse_pack(how.pack, devices[0]), "compiled": how.compiled, "recomputes": how.recomputes,
        "trial_seconds": how.trial_seconds, "allow_code_execution": how.allow_code_execution,
    }  # fmt: skip
    if how.shard > 1:
        given |= {"pack": 1, "compiled": "off"}
    among = {"shard": how.shard} if how.shard > 1 else {}
    retries = Retry(conditions(devices, **given, **among), how.retry)
    settings = Settings(
        executor=executor,
        devices=devices,
        ranks=ranks,
        threads=threads,
        retry=retries,
        **given,
        checkpoint_seconds=how.checkpoint_seconds,
        published=read_published(suite, registry),
        data_dir=data_dir,
        block=block,
        environment=redact(
            {
                **describe_environment(torch.device("cpu")),
                **(environment or {}),
                **({KEY: suite.looks.to_json()} if suite.looks else {}),
                **({"search": _search_plan(suite)} if suite.tune or suite.halving else {}),
                "results_root": store.root,
                "sweep": suite.title or " ".join(suite.tasks),
            }
        ),
    )
    scheduler = Scheduler(registry, store, settings, display)
    known: dict[str, Record] = {}

    def look_up(trial: Trial) -> Record | None:
        if trial.id not in known and (record := store.read(trial.id)) is not None:
            known[trial.id] = record
        return known.get(trial.id)

    try:
        scheduler.start()
        cells = plan_cells(suite, registry, data_dir, resolve_precision(suite.precision, devices[0]), how.shard)
        store.prepare()
        write_catalogue(store, registry, [cell.template for cell in cells])
        looking = None
        if suite.looks is not None:
            looking = Looking(suite.looks, registry, look_up, retries.settles)
            looking.check(cells)
        with display:
            while True:
                while todo := pending(cells, look_up, retries.settles):
                    display.expect(len(todo))
                    scheduler.run(todo)
                    for trial in todo:
                        known.pop(trial.id, None)
                further = None if looking is None else looking.further(cells)
                if further is None:
                    break
                more = [new for new, old in zip(further, cells, strict=True) if new is not old]
                display.say(f"not told apart yet, so they get {len(more[0].seeds)} seeds: {names(more)}")
                cells = further
            for line in looking.ending(cells) if looking is not None else ():
                display.say(line)
    finally:
        scheduler.close()
    trials = [trial for cell in cells for trial in wanted(cell, look_up, retries.settles)]
    records = tuple(record for trial in trials if (record := look_up(trial)) is not None)
    return Outcome(records=records, results=store.root, trained=display.total, observers=scheduler.observers)
