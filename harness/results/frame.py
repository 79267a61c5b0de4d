"""Records as tables: data frames for analysis, files for other programs, text for the terminal.

What is shown is what the records hold: a missing number stays missing, a failed trial is a row like others.
Statistics over trials (intervals, ties, ranks) belong to the leaderboard, not here.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.contract.record import Record
from harness.errors import UsageError
from harness.results.index import read_root
from harness.results.wording import parameters_text, rate_text

if TYPE_CHECKING:
    import pandas as pd

MISSING = "-"  # in text; in a frame it is NaN, NA or None
HEAD = ("trial_id", "state", "score", "main_metric", "higher_is_better")
IDENTITY = (
    *("task", "scale", "model", "model_revision", "method", "budget", "budget_parameters", "learning_rate"),
    *("seed", "precision", "purpose", "data"),
)
JSON_TEXT = ("config", "layer_settings", "targets", "recipe", "plugins")  # they differ from method to method
COUNTS = ("adapter_parameters", "task_parameters", "base_parameters", "budget_deviation_fraction")
COSTS = (
    *("prepare_seconds", "train_seconds", "evaluate_seconds", "step_seconds_solo", "peak_memory_bytes"),
    *("steps", "train_tokens", "pack_lanes"),
)
WHOLE = {
    *("budget_parameters", "adapter_parameters", "task_parameters", "base_parameters"),
    *("seed", "steps", "pack_lanes"),  # bytes and tokens may be a lane's share of a pack: float64
}
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")  # what makes a spreadsheet run a text cell
NUMBER_GROUPS = ("metrics/", "counts/", "cost/")
TIMES = ("started_at", "finished_at")


def read_results(results: str | Path = "results") -> pd.DataFrame:
    """Return every record below a result root, one row each; the columns are those of ``harness results export``.

    Raises:
        UsageError: There are none.
    """
    return frame(read_root(results))


def frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return one row per record, in the order given.

    Parameters, seed, steps and lanes are ``Int64``, other numbers ``float64``; what is missing is NA or NaN.
    The columns, of which every frame has all but those with a slash:

    * ``trial_id``, ``state``, ``score`` (final ``main_metric``, in that metric's unit), ``main_metric``,
      ``higher_is_better``;
    * the trial: ``task``, ``scale``, ``model``, ``model_revision``, ``method``, ``budget``,
      ``budget_parameters``, ``learning_rate`` (NaN where nothing trained), ``seed``, ``precision``, ``purpose``,
      ``data``; as JSON text
      ``config``, ``layer_settings``, ``targets``, ``recipe``, ``plugins``;
    * counts: ``adapter_parameters`` (planned, where the trial did not get so far as to count),
      ``task_parameters``, ``base_parameters``, ``budget_deviation_fraction``;
    * cost: ``prepare_seconds``, ``train_seconds``, ``evaluate_seconds``, ``step_seconds_solo``,
      ``peak_memory_bytes``, ``steps``, ``train_tokens``, ``pack_lanes``;
    * ``error_type``, ``error_message``, ``started_at``, ``finished_at`` (UTC);
    * ``metrics/<name>`` (final value, in the metric's unit), ``reasons/<name>`` (why there is none), and
      ``counts/<name>`` and ``cost/<name>`` for those not named above.
    """
    import pandas as pd

    rows = [_row(record) for record in records]
    columns = [*HEAD, *IDENTITY, *JSON_TEXT, *COUNTS, *COSTS, "error_type", "error_message", *TIMES]
    columns += sorted({name for row in rows for name in row} - set(columns))
    table = pd.DataFrame(rows, columns=columns)
    for name in TIMES:
        table[name] = pd.to_datetime(table[name], utc=True, format="ISO8601").dt.as_unit("us")
    return table.astype({name: _dtype(name) for name in columns if name not in TIMES})


def history_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return the curves, one row per record, step and metric.

    Columns: ``trial_id``, ``task``, ``method``, ``budget``, ``learning_rate`` (NaN where nothing trained), ``seed``,
    ``step`` (optimizer updates done), ``metric``, ``value`` (in the metric's unit; NaN where there was none).
    """
    import pandas as pd

    of_trial = ("task", "method", "budget", "learning_rate", "seed")
    rows = [
        {
            "trial_id": record.trial_id,
            **{name: getattr(record.trial, name) for name in of_trial},
            "learning_rate": record.learning_rate,
            "step": entry["step"],
            "metric": metric,
            "value": value,
        }
        for record in records
        for entry in record.history
        for metric, value in entry["metrics"].items()
    ]
    table = pd.DataFrame(rows, columns=["trial_id", *of_trial, "step", "metric", "value"])
    numbers = {"seed": "int64", "step": "int64", "learning_rate": "float64", "value": "float64"}
    return table.astype({name: numbers.get(name, "string") for name in table.columns})


def export(records: Iterable[Record], path: str | Path) -> int:
    """Write ``frame(records)`` to a file, whose suffix chooses the format, and return the number of records.

    Args:
        records: Which.
        path: Ends in ``.csv`` (see :func:`to_csv`), ``.parquet`` or ``.json`` (an array of objects).

    Raises:
        UsageError: Another suffix, or the file cannot be written.
    """
    writers: dict[str, Callable[[pd.DataFrame], object]] = {
        ".csv": lambda table: to_csv(table, path),
        ".parquet": lambda table: table.to_parquet(path, index=False),
        ".json": lambda table: table.to_json(path, orient="records", date_format="iso", indent=1),
    }
    suffix = Path(path).suffix.lower()
    if suffix not in writers:
        raise UsageError(f"cannot export to {str(path)!r}: the name must end in one of {', '.join(writers)}.")
    table = frame(records)
    try:
        writers[suffix](table)
    except OSError as error:
        raise UsageError(f"cannot export to {str(path)!r}: {error}. Give a file in an existing folder.") from error
    return len(table)


def to_csv(table: pd.DataFrame, path: str | Path | None = None) -> str:
    """Return a table as CSV, and write it if there is a path: its text is only shown, wherever it is opened.

    All text is quoted, so that none opens a line of its own, and has an apostrophe before a first character that would
    make it a spreadsheet's formula. Numbers stay as they are.

    Source: OWASP, "CSV Injection".
    """
    found = table.copy()
    for name in table.select_dtypes(["object", "string"]).columns:
        found[name] = [
            f"'{each}" if isinstance(each, str) and each.startswith(FORMULA_STARTS) else each for each in table[name]
        ]
    text: str | None = found.to_csv(path, index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    return text or ""


def render_list(records: Iterable[Record]) -> str:
    """Return a table for the terminal, by task, method, budget, learning rate and seed."""
    from tabulate import tabulate

    # Of each record only its line stays: there may be many.
    lines = [(_place(record), _line(record)) for record in records]
    if not lines:
        return "No records."
    rows = [line for _, line in sorted(lines, key=lambda each: each[0])]
    numbers = {"parameters", "learning rate", "seed", "score"}
    align = ["right" if name in numbers else "left" for name in rows[0]]
    # An id such as 12e4567890123456 reads as a number; tabulate must not.
    return _printable(tabulate(rows, "keys", tablefmt="simple", disable_numparse=True, colalign=align))


def _line(record: Record) -> dict[str, str]:
    return {
        "trial": record.trial_id,
        "task": record.trial.task,
        "method": record.trial.method,
        "budget": record.trial.budget or "reference",
        "parameters": parameters_text(record.trial),
        "learning rate": rate_text(record.learning_rate, MISSING),
        "seed": str(record.trial.seed),
        "purpose": record.trial.purpose,
        "state": record.state.value,
        "metric": record.main_metric,
        "score": _number(record.score),
    }


def _place(record: Record) -> tuple[Any, ...]:
    trial = record.trial
    model = (trial.task, trial.scale, trial.model)
    return *model, trial.method, trial.budget, trial.learning_rate, trial.seed, record.trial_id


def render_show(record: Record) -> str:
    """Return one trial for the terminal: what it was, how it ended, its numbers, its cost."""
    trial = record.trial
    parts = [
        f"{trial.label}  {record.state.value}",
        _section("Trial", {"id": record.trial_id, **_identity(record)}),
        _section("Settings", record.settings),
        _section("Settings of single layers", trial.layer_settings),
        _section("Recipe", record.recipe),
        _metrics(record),
        _section("Parameters", {"adapter_parameters": trial.adapter_parameters, **record.counts}),
        _section("Cost", record.cost),
        _section("Times", {name: getattr(record, name) for name in TIMES}),
        _section("Artifacts", record.artifacts),
        _section("Environment", record.environment),
    ]
    tries = {f"{n}, {each.get('state')}": _why(each) for n, each in enumerate(record.attempts, 1)}
    parts.append(_section("Earlier tries", tries))
    if not record.is_bound:
        parts.append("Written by an older harness, without a digest: nothing would tell if it had been edited.")
    if record.error is not None:
        error = {key: value for key, value in record.error.items() if key != "traceback"}
        parts += [_section("Error", error), str(record.error.get("traceback") or "").rstrip()]
    return _printable("\n\n".join(part for part in parts if part))


def _why(attempt: Mapping[str, Any]) -> str:
    error = attempt.get("error") or {}
    return f"{attempt.get('finished_at')}: {error.get('type')}: {error.get('message')}"


def _printable(text: str) -> str:
    """Replace control characters but line breaks: a record must not be able to steer a terminal."""
    lines = text.split("\n")
    return "\n".join(
        line if line.isprintable() else "".join(each if each.isprintable() else " " for each in line) for line in lines
    )


def _dtype(column: str) -> str:
    if column in WHOLE:
        return "Int64"
    if column in {"score", "learning_rate", *COUNTS, *COSTS} or column.startswith(NUMBER_GROUPS):
        return "float64"
    return "boolean" if column == "higher_is_better" else "string"


def _row(record: Record) -> dict[str, Any]:
    trial = record.trial
    error = record.error or {}
    return {
        "trial_id": record.trial_id,
        "state": record.state.value,
        "score": record.score,
        "main_metric": record.main_metric,
        "higher_is_better": record.higher_is_better,
        **_identity(record),
        **{name: json.dumps(getattr(trial, name), sort_keys=True) for name in JSON_TEXT},
        "adapter_parameters": trial.adapter_parameters,
        **_known(record.counts, COUNTS, "counts"),
        **_known(record.cost, COSTS, "cost"),
        **{f"metrics/{name}": value for name, value in record.metrics.items()},
        **{f"reasons/{name}": reason for name, reason in record.reasons.items()},
        "error_type": error.get("type"),
        "error_message": error.get("message"),
        "started_at": record.started_at,
        "finished_at": record.finished_at,
    }


def _identity(record: Record) -> dict[str, Any]:
    return {name: getattr(record.trial, name) for name in IDENTITY} | {"learning_rate": record.learning_rate}


def _known(numbers: Mapping[str, Any], names: Sequence[str], group: str) -> dict[str, Any]:
    return {name if name in names else f"{group}/{name}": value for name, value in numbers.items() if value is not None}


def _metrics(record: Record) -> str:
    """Return the final metrics with unit and direction, the main one marked, and why a value is missing."""
    rows = {}
    for name, value in record.metrics.items():
        detail = record.metric_details.get(name, {})
        text = _number(value) if value is not None else f"{MISSING} ({record.reasons.get(name, 'no reason given')})"
        unit = f" {detail['unit']}" if value is not None and detail.get("unit") else ""
        better = f", {'higher' if record.higher_is_better else 'lower'} is better" if name == record.main_metric else ""
        rows[name] = f"{text}{unit}{better}"
    return _section("Metrics", rows)


def _section(title: str, values: Mapping[str, Any]) -> str:
    width = max((len(name) for name in values), default=0)
    lines = [f"  {name:<{width}}  {_number(value)}" for name, value in values.items()]
    return "\n".join([title, *lines]) if lines else ""


def _number(value: Any) -> str:
    """Return a value for reading: counts with separators, other numbers with six significant digits."""
    if value is None or value == "":
        return MISSING
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value, sort_keys=True, default=str)
