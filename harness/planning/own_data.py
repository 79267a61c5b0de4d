"""From a user's data to a suite: which task takes it, under which name, and what its recipe must say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from harness.data.own.locate import OwnData, understand
from harness.errors import UsageError
from harness.planning.registry import Registry

SEEDS = (0, 1, 2)  # fewer cannot tell methods apart


def suite_values(
    registry: Registry, where: str, columns: str = "", kind: str = "", labels: str = "", metric: str = "",
    lower_is_better: bool = False,
) -> tuple[dict[str, Any], Path | None]:  # fmt: skip
    """Return what a suite on a user's data says besides what the user says, and the folder of its tables.

    Args:
        registry: Knows which task takes which kind of data.
        where: A file, a folder or a hub id.
        columns: ``role=column,...``; empty: found by name.
        kind: Of the data; empty: found by its columns.
        labels: Of a classification; empty: those in the data.
        metric: What ranks, a metric of the task or ``module`` or ``module:key`` of `evaluate`; empty: the task's own.
        lower_is_better: Of that module's score.

    Raises:
        DataError: The data cannot be understood.
        UsageError: No task takes such data, or it is not scored so.
    """
    own = understand(where, columns, kind, labels)
    name, source = task_name(registry, own, metric, lower_is_better)
    recipe = {**own.fields, "metric_source": source} if source else dict(own.fields)
    return {"tasks": [name], "seeds": list(SEEDS), "recipe": recipe}, own.data_dir


def task_name(registry: Registry, own: OwnData, metric: str = "", lower_is_better: bool = False) -> tuple[str, str]:
    """Return the name of the task on a user's data, and the module that gives its metric, if one does."""
    task = registry.data_task(own.kind)
    slug, source = metric, ""
    if metric and metric not in task.metrics:
        slug, source = re.sub(r"[^a-z0-9_]+", "-", metric.rstrip("/").rsplit("/", 1)[-1].lower()).strip("-"), metric
        if slug in ("", *task.metrics):  # it would be scored by the task's own
            other = f"give its key, too: {metric}:KEY; or one" if task.takes_modules else "give one"
            raise UsageError(
                f"--metric {metric!r} is not to be told from {slug or 'no'!r} by its name, a metric of the task; "
                f"{other} of {', '.join(task.metrics)}"
            )
    elif lower_is_better:
        raise UsageError(
            "--lower-is-better is about a module of `evaluate`; the metrics of a task know their direction"
        )
    name = task.name_for(own.title, slug, lower_is_better)
    registry.task(name)
    return name, source
