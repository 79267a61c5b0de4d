"""Synthetic records, made by a factory: no training, no files."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.contract.record import Record, State
from harness.contract.trial import Trial
from harness_leaderboard.boards.build import build_boards
from harness_leaderboard.view.model import SiteView
from harness_leaderboard.view.site import site_view
from harness_leaderboard.write.html import write_site
from harness_leaderboard.write.terminal import document

BUDGET_PARAMETERS = 98_304
STEPS = range(50, 501, 50)
ENVIRONMENT = {
    "git_commit": "0123abc",
    "hardware": {"device": "Test CPU", "memory_gib": 8},
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
}
DETAILS = {
    "accuracy": {
        "title": "Accuracy",
        "unit": "fraction",
        "higher_is_better": True,
        "help": "Share of exact answers.",
    },
    "loss": {"title": "Loss", "unit": "nats", "higher_is_better": False, "help": "Per token."},
}


def make(
    method: str = "lora",
    seed: int = 0,
    score: float | None = 0.5,
    *,
    state: State = State.COMPLETE,
    items: list[float | None] | None = None,
    trial: dict[str, Any] | None = None,
    **changes: Any,
) -> Record:
    """Return one record; ``trial`` changes its trial, the other keywords change the record."""
    is_complete = state is State.COMPLETE
    values: dict[str, Any] = {
        "task": "uuid",
        "scale": "smoke",
        "recipe": {"steps": 500, "batch_size": 16},
        "model": "nano",
        "model_revision": "sha256:77aa",
        "method": method,
        "config": {"rank": 8},
        "budget": "lora:r=8",
        "budget_parameters": BUDGET_PARAMETERS,
        "adapter_parameters": BUDGET_PARAMETERS,
        "learning_rate": 1e-3,
        "seed": seed,
        "precision": "float32",
        "data": "generated-v1",
        "plugins": {"method": "peft-harness==0.1.0", "task": "peft-harness==0.1.0"},
    }
    metrics = {"accuracy": score, "loss": None if score is None else 2 - score}
    defaults: dict[str, Any] = {
        "metrics": metrics if is_complete else {},
        "history": curve(score or 0.0, 500 if is_complete else 200),
        "items": {"accuracy": items} if items is not None else {},
        "main_metric": "accuracy",
        "higher_is_better": True,
        "metric_details": DETAILS,
        "counts": {
            "adapter_parameters": BUDGET_PARAMETERS,
            "task_parameters": 0,
            "budget_deviation_fraction": 0.0,
        },
        "cost": {
            "train_seconds": 75.0,
            "peak_memory_bytes": 512 * 2**20,
            "step_seconds_solo": 0.0125,
            "prepare_seconds": 1.0,
            "evaluate_seconds": 2.0,
            "pack_lanes": 4,
        },
        "environment": ENVIRONMENT,
        "error": None
        if is_complete
        else {"type": "TrialDivergedError", "message": "loss became NaN", "traceback": "", "step": 200},
        "started_at": "2026-01-01T00:00:00Z",
        "finished_at": "2026-01-01T00:02:00Z",
    }
    return Record(trial=Trial(**{**values, **(trial or {})}), state=state, **{**defaults, **changes})


def curve(last: float, until: int) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "metrics": {"train/loss": 2 * math.exp(-step / 200) + 1 - last, "accuracy": last * step / 500},
        }
        for step in STEPS
        if step <= until
    ]


def reference(seed: int = 0, score: float = 0.9, **changes: Any) -> Record:
    """Return a record of a method outside the budget."""
    trial = {"budget": "", "budget_parameters": None, "adapter_parameters": 1_000_000, "config": {}}
    return make("full", seed, score, trial=trial, counts={"adapter_parameters": 1_000_000}, **changes)


def graded(method: str, ability: float, seeds: range, count: int = 300, **changes: Any) -> list[Record]:
    """Return records with right/wrong items whose difficulty is the same for every method."""
    records = []
    for seed in seeds:
        draw, luck = random.Random("items"), random.Random(f"{method}{seed}")
        shift = luck.gauss(0, 0.02)
        items: list[float | None] = [
            float(0.8 * draw.random() + 0.2 * luck.random() < ability + shift) for _ in range(count)
        ]
        score = sum(value or 0.0 for value in items) / count
        records.append(make(method, seed, score, items=items, **changes))
    return records


def example() -> list[Record]:
    """Return a realistic set: ties, failures, references, tuning trials, two tasks."""
    abilities = {"dora": 0.86, "pissa": 0.85, "mora": 0.84, "lora": 0.70, "melora": 0.69, "relora": 0.55}
    records = []
    for place, (method, ability) in enumerate(abilities.items()):
        deviation = (-1) ** place * place * 0.0012
        parameters = round(BUDGET_PARAMETERS * (1 + deviation))
        trial = {"adapter_parameters": parameters, "learning_rate": 3e-3 if place % 2 else 1e-3}
        if method == "melora":
            trial["layer_settings"] = {"layers.0.q_proj": {"rank": 9}, "layers.3.v_proj": {"rank": 7}}
        cost = {"train_seconds": 60.0 + 12 * place, "peak_memory_bytes": (480 + 20 * place) * 2**20}
        cost["step_seconds_solo"] = 0.011 + 0.002 * place if place != 3 else None
        counts = {"task_parameters": 0, "budget_deviation_fraction": deviation}
        reasons = {} if place != 3 else {"step_seconds_solo": "no probe: --no-probe was given"}
        records += graded(method, ability, range(5), trial=trial, cost=cost, counts=counts, reasons=reasons)
        for rate in (3e-4, 1e-3, 3e-3):
            tune = {**trial, "learning_rate": rate, "purpose": "tune"}
            records.append(make(method, 100, ability - abs(math.log10(rate / trial["learning_rate"])) / 5, trial=tune))
    records += [make("vera", seed, 0.61 + seed / 50) for seed in range(3)]
    records += [make("vera", 3, state=State.DIVERGED), make("vera", 4, state=State.OUT_OF_MEMORY)]
    records += [make("oft", seed, state=State.FAILED) for seed in range(5)]
    records += [reference(seed, 0.88 + seed / 200) for seed in range(5)]
    for method, score in (("lora", 3.21), ("dora", 3.18), ("mora", 3.35)):
        trial = {"task": "c4", "scale": "small", "model": "llama-58m", "data": "allenai/c4@1588ec4"}
        records.append(
            make(
                method,
                0,
                score,
                trial=trial,
                main_metric="loss",
                higher_is_better=False,
                metrics={"loss": score},
            )
        )
    return records


def view_of(records: list[Record], **more: Any) -> SiteView:
    """Return the view of some records."""
    ordered = sorted(records, key=lambda each: each.trial_id)
    return site_view(ordered, build_boards(ordered), **more)


def files_of(records: list[Record], folder: Path, **more: Any) -> dict[str, str]:
    """Write the site of some records; return every text file by name, and all boards together as ``boards``."""
    write_site(view_of(records, **more), folder)
    found = {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "assets" not in path.parts
    }
    pages = [text for name, text in found.items() if name.startswith("boards/") and name.endswith(".html")]
    return {**found, "boards": "\n".join(pages)}


def terminal_of(records: list[Record]) -> str:
    """Return what a terminal shows of some records."""
    view = view_of(records)
    return document(view.boards, view.families)


@pytest.fixture(scope="session")
def make_files() -> Callable[..., dict[str, str]]:
    return files_of


@pytest.fixture(scope="session")
def make_view() -> Callable[..., SiteView]:
    return view_of


@pytest.fixture(scope="session")
def make_terminal() -> Callable[[list[Record]], str]:
    return terminal_of


@pytest.fixture(scope="session")
def make_record() -> Callable[..., Record]:
    return make


@pytest.fixture(scope="session")
def make_reference() -> Callable[..., Record]:
    return reference


@pytest.fixture(scope="session")
def make_graded() -> Callable[..., list[Record]]:
    return graded


@pytest.fixture(scope="session")
def example_records() -> list[Record]:
    return example()
