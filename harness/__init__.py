"""A fair, fast, plugin-based benchmark of parameter-efficient fine-tuning methods.

Everything a plugin needs is importable from here. Names are loaded on first use (PEP 562), so that ``import harness``
and ``harness --help`` answer at once, without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.data import identify as identify
    from harness.data import local_files as local_files
    from harness.data import read_rows as read_rows
    from harness.data import read_table as read_table
    from harness.data import require as require
    from harness.decoding import continuations as continuations
    from harness.decoding import generate as generate
    from harness.decomposition import svd as svd
    from harness.dropout import Dropout as Dropout
    from harness.errors import BudgetError as BudgetError
    from harness.errors import ConfigError as ConfigError
    from harness.errors import DataError as DataError
    from harness.errors import HarnessError as HarnessError
    from harness.errors import UsageError as UsageError
    from harness.evaluation import negative_log_likelihoods as negative_log_likelihoods
    from harness.hookspecs import hookimpl as hookimpl
    from harness.method import Adapter as Adapter
    from harness.method import Calibration as Calibration
    from harness.method import Method as Method
    from harness.method import MethodConfig as MethodConfig
    from harness.method import MethodTraits as MethodTraits
    from harness.method import StepInfo as StepInfo
    from harness.method import setting as setting
    from harness.record import Record as Record
    from harness.slots import delta_weights as delta_weights
    from harness.slots import pretrained as pretrained
    from harness.task import IGNORE as IGNORE
    from harness.task import Evaluation as Evaluation
    from harness.task import Example as Example
    from harness.task import Metric as Metric
    from harness.task import ModelKind as ModelKind
    from harness.task import Recipe as Recipe
    from harness.task import Source as Source
    from harness.task import Table as Table
    from harness.task import Task as Task
    from harness.task import TaskContext as TaskContext
    from harness.task import TaskData as TaskData
    from harness.token_table import tokenised_once as tokenised_once
    from harness.trial import Trial as Trial

__version__ = "0.1.0"

_HOMES = {
    "Adapter": "harness.method",
    "Evaluation": "harness.task",
    "Example": "harness.task",
    "IGNORE": "harness.task",
    "Metric": "harness.task",
    "ModelKind": "harness.task",
    "Recipe": "harness.task",
    "Source": "harness.task",
    "Table": "harness.task",
    "Task": "harness.task",
    "TaskContext": "harness.task",
    "TaskData": "harness.task",
    "BudgetError": "harness.errors",
    "Calibration": "harness.method",
    "ConfigError": "harness.errors",
    "DataError": "harness.errors",
    "Dropout": "harness.dropout",
    "HarnessError": "harness.errors",
    "Method": "harness.method",
    "MethodConfig": "harness.method",
    "MethodTraits": "harness.method",
    "Record": "harness.record",
    "StepInfo": "harness.method",
    "Trial": "harness.trial",
    "UsageError": "harness.errors",
    "tokenised_once": "harness.token_table",
    "continuations": "harness.decoding",
    "generate": "harness.decoding",
    "negative_log_likelihoods": "harness.evaluation",
    "identify": "harness.data",
    "local_files": "harness.data",
    "read_rows": "harness.data",
    "read_table": "harness.data",
    "require": "harness.data",
    "delta_weights": "harness.slots",
    "pretrained": "harness.slots",
    "hookimpl": "harness.hookspecs",
    "setting": "harness.method",
    "svd": "harness.decomposition",
}
__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    """Load a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'harness' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
