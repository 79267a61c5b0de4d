"""What of a trial and its record goes where in MLflow: parameters, tags, data, points, files."""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Metric, Run

    from harness import Record, Trial


SYSTEM = "system/"  # what MLflow's page shows apart


def parameters(trial: Trial) -> dict[str, str]:
    """Flatten the trial: nested settings as ``config/r``, lists and layer-wise settings as JSON."""
    flat: dict[str, str] = {}
    for key, value in trial.to_json().items():
        if isinstance(value, dict) and key != "layer_settings":  # a parameter per layer would drown the others
            flat |= {safe(f"{key}/{name}"): text(each) for name, each in value.items()}
        else:
            flat[key] = text(value)
    return flat


def text(value: Any) -> str:
    """Return a value as text: JSON, unless it is text."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def trial_tags(trial: Trial, environment: Mapping[str, Any]) -> dict[str, str]:
    """Return what a run is found by."""
    keys = ("task", "scale", "method", "model", "budget", "seed", "learning_rate", "precision", "purpose")
    return {
        "kind": "trial",
        "trial_id": trial.id,
        "sweep": str(environment.get("sweep", "")),
        "results_root": absolute(environment),
        "mlflow.note.content": f"`{trial.label}`, trial `{trial.id}`: running.",
        **{key: str(getattr(trial, key)) for key in keys},
        **source(environment),
    }


def source(environment: Mapping[str, Any]) -> dict[str, str]:
    """Return what MLflow shows as the source of a run."""
    commit = environment.get("git_commit")
    return {"mlflow.source.name": "harness", **({"mlflow.source.git.commit": str(commit)} if commit else {})}


def result_tags(record: Record, root: str) -> dict[str, str]:
    """Return how a trial ended, on what, and where what it trained lies; the files themselves stay there."""
    tags = {"state": record.state.value, "main_metric": record.main_metric}
    tags |= {f"artifact/{kind}": f"{root.rstrip('/')}/{name}" for kind, name in record.artifacts.items()}
    hardware = record.environment.get("hardware")
    tags |= (
        {safe(f"hardware/{key}"): text(value) for key, value in hardware.items()} if isinstance(hardware, dict) else {}
    )
    tags |= {safe(f"reason/{metric}"): reason for metric, reason in record.reasons.items()}
    if record.error is not None:
        error = {key: record.error.get(key) for key in ("type", "message", "step")}
        tags |= {f"error/{key}": str(value) for key, value in error.items() if value is not None}
        result = f"{error['type']}: {error['message']}"
    elif record.score is not None:
        result = f"{record.main_metric} {record.score:g}"
    else:
        result = f"{record.main_metric}: {record.reasons.get(record.main_metric, 'none')}"
    note = f"`{record.trial.label}`, trial `{record.trial_id}`: {record.state.value}. {result}"
    return {**tags, "mlflow.note.content": note}


def curves(record: Record, seen_milliseconds: Mapping[int, int]) -> Iterator[Metric]:
    """Yield the history and, at the last step, the final numbers.

    A record holds no time for a step: one that nobody saw is placed between start and end, by its number.
    """
    began, ended = milliseconds(record.started_at), milliseconds(record.finished_at)
    last = max((int(entry["step"]) for entry in record.history), default=0)
    for entry in record.history:
        step = int(entry["step"])
        estimate = began + round((ended - began) * step / max(last, 1))
        yield from points_of("", entry["metrics"], step, seen_milliseconds.get(step, estimate))
    groups = (("final", record.metrics), ("cost", record.cost), ("count", record.counts), ("system", system(record)))
    for group, numbers in groups:
        yield from points_of(f"{group}/", numbers, last, ended)


def points_of(prefix: str, numbers: Mapping[str, Any], step: int, milliseconds: int) -> Iterator[Metric]:
    """Yield the numbers of one step as points; those that are missing are left out."""
    from mlflow.entities import Metric

    for name, value in numbers.items():
        if isinstance(value, int | float):  # None: not measured; the record says why
            yield Metric(safe(prefix + name), float(value), milliseconds, step)


def system(record: Record) -> dict[str, float]:
    """Return the costs that MLflow's page shows as system metrics, in its units."""
    units = {"peak_memory_bytes": ("peak_memory_megabytes", 1e-6), "tokens_per_second_solo": ("tokens_per_second", 1.0),
             "step_seconds_solo": ("step_milliseconds", 1e3), "train_seconds": ("train_seconds", 1.0)}  # fmt: skip
    return {
        name: float(value) * factor
        for key, (name, factor) in units.items()
        if (value := record.cost.get(key)) is not None
    }


def dataset(trial: Trial) -> DatasetInput:
    """Return the data that a trial trains on, as MLflow names it."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    identity = trial.data or "generated"
    return DatasetInput(
        Dataset(
            name=trial.task,
            digest=hashlib.sha256(identity.encode()).hexdigest()[:12],
            source_type="harness",
            source=json.dumps({"task": trial.task, "data": identity}),
        ),
        [InputTag("mlflow.data.context", "training")],
    )


def sweep_parameters(children: Sequence[Run]) -> dict[str, str]:
    """Return what a sweep crossed, as its trials say."""
    found = {}
    for name in ("task", "scale", "method", "model", "budget", "learning_rate", "seed", "precision"):
        values = {run.data.params.get(name, "") for run in children} - {""}
        found[name] = ", ".join(sorted(values, key=_in_order))
    return {name: value for name, value in found.items() if value}


def summary_table(children: Sequence[Run]) -> dict[str, Any]:
    """Return one line per trial, as MLflow's page shows tables: methods together, best score first."""
    columns = [
        "method",
        "budget",
        "learning_rate",
        "seed",
        "purpose",
        "state",
        "metric",
        "score",
        "train_seconds",
        "trial",
    ]
    lines = []
    for run in children:
        params, tags, metrics = run.data.params, run.data.tags, run.data.metrics
        metric = tags.get("main_metric", "")
        lines.append(
            [
                *(params.get(name, "") for name in ("method", "budget", "learning_rate", "seed", "purpose")),
                tags.get("state", "running"),
                metric,
                metrics.get(safe(f"final/{metric}")),
                metrics.get("cost/train_seconds"),
                tags.get("trial_id", ""),
            ]
        )
    return {"columns": columns, "data": sorted(lines, key=lambda line: [_in_order(str(each)) for each in line[:5]])}


def _in_order(text: str) -> tuple[float, str]:
    try:
        return float(text), ""
    except ValueError:
        return math.inf, text


def local_folder(root: str) -> Path | None:
    """Return the result root as an absolute folder, or ``None`` where it is remote."""
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    filesystem, path = fsspec.core.url_to_fs(root)
    return Path(path).resolve() if isinstance(filesystem, LocalFileSystem) else None


def absolute(environment: Mapping[str, Any]) -> str:
    """Return the result root as a path or URL that does not depend on where one stands."""
    root = str(environment["results_root"])
    folder = local_folder(root)
    return root if folder is None else folder.as_posix()


def safe(name: str) -> str:
    """Return the name with the characters that MLflow refuses replaced."""
    return re.sub(r"[^\w\-. /:]", "_", name, flags=re.ASCII)


def milliseconds(moment: str) -> int:
    """Return a time in ISO 8601 as milliseconds since the epoch."""
    return round(datetime.fromisoformat(moment).timestamp() * 1000)


def now() -> int:
    """Return the time as milliseconds since the epoch."""
    return round(time.time() * 1000)
