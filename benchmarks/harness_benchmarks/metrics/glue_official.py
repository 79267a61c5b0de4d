"""GLUE's official metrics as an ``evaluate`` module: ``evaluate.load("<this file>", "mrpc")``.

    cola          matthews (with accuracy beside it)
    sst2 qnli rte mnli   accuracy
    mrpc qqp      accuracy, f1 of class 1
    stsb          pearson, spearman

The same numbers as the hub's ``glue`` metric, but in NumPy alone: nothing to download, nothing else to install. The
file imports nothing of this project, because ``evaluate`` copies it elsewhere before it runs.

Source: Wang et al., "GLUE", arXiv:1804.07461, table 1. A constant prediction has no correlation: it counts as 0, as in
the official scorer.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

CLASSIFICATION = ("cola", "sst2", "mrpc", "qqp", "mnli", "qnli", "rte")
REGRESSION = "stsb"


class GlueOfficial(evaluate.Metric):
    """GLUE's metrics; the configuration name is the task."""

    def _info(self) -> Any:
        if self.config_name not in (*CLASSIFICATION, REGRESSION):
            known = ", ".join((*CLASSIFICATION, REGRESSION))
            raise KeyError(f"GLUE has no task {self.config_name!r}; it has {known}")
        value = datasets.Value("float64" if self.config_name == REGRESSION else "int64")
        return evaluate.MetricInfo(
            description="GLUE's official metrics",
            citation="Wang et al., GLUE, 2018",
            inputs_description="predictions and references: class indices, or similarity scores for stsb",
            features=datasets.Features({"predictions": value, "references": value}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        """Return the task's metrics."""
        given, right = np.asarray(predictions), np.asarray(references)
        if self.config_name == REGRESSION:
            return {"pearson": pearson(given, right), "spearman": pearson(ranks(given), ranks(right))}
        result = {"accuracy": float((given == right).mean())}
        if self.config_name == "cola":
            # Of two classes, Matthews' correlation is Pearson's of the 0/1 labels.
            result["matthews"] = pearson(given, right)
        if self.config_name in ("mrpc", "qqp"):
            result["f1"] = f1(given, right)
        return result


def pearson(a: Any, b: Any) -> float:
    """Return the correlation of two vectors; 0 where one is constant."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else 0.0


def ranks(values: Any) -> Any:
    """Return ranks from 1; equal values share the mean of theirs."""
    values = np.asarray(values)
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[group]


def f1(given: Any, right: Any) -> float:
    """Return the harmonic mean of precision and recall of class 1; 0 where it is neither given nor right."""
    hits = int(((given == 1) & (right == 1)).sum())
    found = int((given == 1).sum()) + int((right == 1).sum())
    return 2 * hits / found if found else 0.0
