"""A fair, fast, plugin-based benchmark of parameter-efficient fine-tuning methods.

Everything a plugin needs is importable from here, and what notebooks need: ``run``, ``plan``, ``read_results`` and
``compare`` (``harness.results`` is a room of the engine, and can be called as ``read_results``). Names are loaded on
first use (PEP 562), so that ``import harness`` and ``harness --help`` answer at once, without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.contract.adapter import Adapter as Adapter
    from harness.contract.adapter import LowRankAdapter as LowRankAdapter
    from harness.contract.adapter import PeftForm as PeftForm
    from harness.contract.analysis import Analysis as Analysis
    from harness.contract.analysis import LayerChange as LayerChange
    from harness.contract.analysis import LayerFindings as LayerFindings
    from harness.contract.data_task import DataTask as DataTask
    from harness.contract.dropout import Dropout as Dropout
    from harness.contract.executor import Executor as Executor
    from harness.contract.executor import ExecutorWorker as ExecutorWorker
    from harness.contract.hookspecs import hookimpl as hookimpl
    from harness.contract.looks import Looks as Looks
    from harness.contract.method import Calibration as Calibration
    from harness.contract.method import Method as Method
    from harness.contract.method import MethodTraits as MethodTraits
    from harness.contract.method import Purpose as Purpose
    from harness.contract.method import StepInfo as StepInfo
    from harness.contract.method import TrialContext as TrialContext
    from harness.contract.method import adapted_layers as adapted_layers
    from harness.contract.pseudo_values import pseudo_values as pseudo_values
    from harness.contract.record import Record as Record
    from harness.contract.setting import MethodConfig as MethodConfig
    from harness.contract.setting import setting as setting
    from harness.contract.task import IGNORE as IGNORE
    from harness.contract.task import Evaluation as Evaluation
    from harness.contract.task import Example as Example
    from harness.contract.task import Metric as Metric
    from harness.contract.task import ModelKind as ModelKind
    from harness.contract.task import Recipe as Recipe
    from harness.contract.task import Source as Source
    from harness.contract.task import Table as Table
    from harness.contract.task import Task as Task
    from harness.contract.task import TaskContext as TaskContext
    from harness.contract.task import TaskData as TaskData
    from harness.contract.trial import Trial as Trial
    from harness.data.own.columns import DataKind as DataKind
    from harness.data.own.recipe import OwnRecipe as OwnRecipe
    from harness.data.own.rows import OwnRow as OwnRow
    from harness.data.own.splits import OwnTables as OwnTables
    from harness.data.own.splits import read_own as read_own
    from harness.data.tables import identify as identify
    from harness.data.tables import local_files as local_files
    from harness.data.tables import read_rows as read_rows
    from harness.data.tables import read_table as read_table
    from harness.data.tables import require as require
    from harness.data.token_table import tokenised_once as tokenised_once
    from harness.engine.decoding import continuations as continuations
    from harness.engine.decoding import generate as generate
    from harness.engine.decomposition import svd as svd
    from harness.engine.evaluation import negative_log_likelihoods as negative_log_likelihoods
    from harness.engine.evaluation import predict as predict
    from harness.engine.nf4 import NF4 as NF4
    from harness.engine.nf4 import dequantise_nf4 as dequantise_nf4
    from harness.engine.nf4 import nf4_levels as nf4_levels
    from harness.engine.nf4 import quantise_nf4 as quantise_nf4
    from harness.engine.slots import delta_weights as delta_weights
    from harness.engine.slots import pretrained as pretrained
    from harness.errors import BudgetError as BudgetError
    from harness.errors import ConfigError as ConfigError
    from harness.errors import DataError as DataError
    from harness.errors import HarnessError as HarnessError
    from harness.errors import UsageError as UsageError
    from harness.results.frame import read_results as read_results
    from harness.running.api import compare as compare
    from harness.running.api import plan as plan
    from harness.running.api import run as run
    from harness.running.local import LocalExecutor as LocalExecutor

__version__ = "0.1.0"

_HOMES = {
    "Analysis": "harness.contract.analysis",
    "LayerChange": "harness.contract.analysis",
    "LayerFindings": "harness.contract.analysis",
    "Looks": "harness.contract.looks",
    "Adapter": "harness.contract.adapter",
    "adapted_layers": "harness.contract.method",
    "Evaluation": "harness.contract.task",
    "Example": "harness.contract.task",
    "IGNORE": "harness.contract.task",
    "Metric": "harness.contract.task",
    "ModelKind": "harness.contract.task",
    "Recipe": "harness.contract.task",
    "Source": "harness.contract.task",
    "Table": "harness.contract.task",
    "Task": "harness.contract.task",
    "TaskContext": "harness.contract.task",
    "TaskData": "harness.contract.task",
    "BudgetError": "harness.errors",
    "Calibration": "harness.contract.method",
    "ConfigError": "harness.errors",
    "DataError": "harness.errors",
    "DataKind": "harness.data.own.columns",
    "DataTask": "harness.contract.data_task",
    "Dropout": "harness.contract.dropout",
    "Executor": "harness.contract.executor",
    "ExecutorWorker": "harness.contract.executor",
    "LocalExecutor": "harness.running.local",
    "OwnRecipe": "harness.data.own.recipe",
    "OwnRow": "harness.data.own.rows",
    "OwnTables": "harness.data.own.splits",
    "read_own": "harness.data.own.splits",
    "HarnessError": "harness.errors",
    "LowRankAdapter": "harness.contract.adapter",
    "Method": "harness.contract.method",
    "MethodConfig": "harness.contract.setting",
    "MethodTraits": "harness.contract.method",
    "PeftForm": "harness.contract.adapter",
    "Record": "harness.contract.record",
    "Purpose": "harness.contract.method",
    "pseudo_values": "harness.contract.pseudo_values",
    "StepInfo": "harness.contract.method",
    "TrialContext": "harness.contract.method",
    "Trial": "harness.contract.trial",
    "UsageError": "harness.errors",
    "tokenised_once": "harness.data.token_table",
    "compare": "harness.running.api",
    "plan": "harness.running.api",
    "read_results": "harness.results.frame",
    "run": "harness.running.api",
    "continuations": "harness.engine.decoding",
    "generate": "harness.engine.decoding",
    "negative_log_likelihoods": "harness.engine.evaluation",
    "predict": "harness.engine.evaluation",
    "identify": "harness.data.tables",
    "local_files": "harness.data.tables",
    "read_rows": "harness.data.tables",
    "read_table": "harness.data.tables",
    "require": "harness.data.tables",
    "NF4": "harness.engine.nf4",
    "dequantise_nf4": "harness.engine.nf4",
    "nf4_levels": "harness.engine.nf4",
    "quantise_nf4": "harness.engine.nf4",
    "delta_weights": "harness.engine.slots",
    "pretrained": "harness.engine.slots",
    "hookimpl": "harness.contract.hookspecs",
    "setting": "harness.contract.setting",
    "svd": "harness.engine.decomposition",
}
__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    """Load a public name on first use."""
    if name == "results":
        return import_module("harness.results")
    if name not in _HOMES:
        raise AttributeError(f"module 'harness' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
