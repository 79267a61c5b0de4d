"""The contract of a task on data that the user brings (``harness run --data``).

Such a task is written once for a kind of data. Its name says the rest: ``<kind>/<title of the data>``, and after ``@``
the metric that ranks, where it is not the kind's usual one. So results on two data sets, or by two metrics, are never
mixed, and every process finds the same task by the trial's name alone. Which rows, its recipe says; their content's
hash is in the trial.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import lru_cache
from typing import Any, ClassVar, cast

from harness.contract.task import Metric, Task
from harness.errors import UsageError

LOWER = ":lower"  # after a metric's name: a lower score is a better one


class DataTask(Task):
    """A task on data of one kind. Subclass it and register it with ``harness_register_data_tasks``.

    Class attributes beside those of a task:
        name: The kind of data, e.g. ``"classification"``.
        takes_modules: Whether any module of ``evaluate`` may be the main metric, over texts that the model writes.
    """

    takes_modules: ClassVar[bool] = False

    @classmethod
    def named(cls, name: str) -> type[DataTask]:
        """Return the task of a full name, e.g. ``classification/reviews@matthews``.

        Raises:
            UsageError: The metric is none that this kind of data can be scored by.
        """
        return _named(cast(Hashable, cls), name)

    @classmethod
    def name_for(cls, title: str, metric: str = "", lower_is_better: bool = False) -> str:
        """Return the full name of the task on one data set."""
        chosen = f"@{metric}{LOWER if lower_is_better else ''}" if metric and metric != cls.main_metric else ""
        return f"{cls.name}/{title}{chosen}"


@lru_cache(maxsize=64)
def _named(kind: Any, name: str) -> type[DataTask]:
    title, at, metric = name.removeprefix(f"{kind.name}/").partition("@")
    lower = metric.endswith(LOWER)
    metric = metric.removesuffix(LOWER)
    metrics: Mapping[str, Metric] = kind.metrics
    if at and metric not in metrics:
        if not kind.takes_modules:
            raise UsageError(f"{kind.name} is not scored by {metric!r}; metrics: {', '.join(metrics)}")
        told = Metric(metric, "score", not lower, f"Of the module {metric!r} of `evaluate`, over written answers.")
        metrics = {**metrics, metric: told}
    elif lower and metrics[metric].higher_is_better:
        raise UsageError(f"of {metric!r} a higher score is better; leave {LOWER!r} away")
    values: dict[str, Any] = {"name": name, "title": title, "metrics": metrics, "__doc__": kind.__doc__}
    if at:
        values["main_metric"] = metric
    return type(kind.__name__, (kind,), values)
