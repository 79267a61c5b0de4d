"""A suite: the TOML file, or the command-line flags, that say what to cross with what.

title = "..."
methods = ["all"]                 # names, "all" or "everything"; "mora:operator=rotation" sets fields;
                                  # "melora:n=2|4|8" chooses one of the values on validation; "-full" leaves one out,
                                  # of those named or, alone, of all
tasks = ["uuid"]
scale = "smoke"                   # each task's default: smoke
model = "nano"                    # each task's default when absent
budgets = ["lora:r=8"]            # "own": nothing is matched, every method has the size of its own settings
seeds = [0, 1, 2]
learning_rates = [1e-3, 3e-3]     # absolute, the same for every method; absent: the recipe's, times the method's factor
tune = 5                          # instead: so many rates per method, searched on validation with a seed of its own
tune_seeds = 3                    # ... on so many seeds, by the mean
halving = true                    # ... of which the worse half gets no more after 1, 2, 4, ... of them
until_separated = 5               # add seeds while two methods may differ by so many points, see ``contract.looks``
max_seeds = 10                    # ... up to so many
targets = []                      # name patterns of the adapted layers
precision = "auto"
[rates]                           # by method as written above; one of several is chosen on validation, and no other
"mora:operator=rotation" = [1e-4, 3e-4]
[precisions]                      # by method as written above
full = "bfloat16"
[recipe]                          # overrides of the tasks' recipes at every scale
steps = 200
[recipe.paper]                    # at this scale only, where nothing is said of every scale
epochs = 3
[published]                       # a paper's numbers to show beside ours, see ``published``
uuid = [{method = "lora", budget = "lora:r=8", metric = "character_accuracy", value = 0.542, unit = "fraction",
         model = "meta-llama/Llama-2-7b-hf", source = "MoRA table 2"}]
"""

from __future__ import annotations

import math
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from harness.contract.looks import Looks
from harness.errors import UsageError

LARGEST_SEED = 2**32 - 1  # so that every number drawn from it fits into 64 bits
MOST_SEEDS = 1000  # of a run that adds them by itself
MOST_TUNE_SEEDS = 100
MOST_RATES = 50  # of a first grid: half a decade apart, these are 25 decades
USUAL_MOST = 10  # where nobody says how many


@dataclass(frozen=True)
class Words:
    """What messages call the fields of a suite: as its file and the Python functions do, or by their options.

    Attributes:
        options: By field, the option of a command line that sets it; empty where nobody typed any.
    """

    options: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, name: str, value: Any = None) -> str:
        """Return what to call a field, with its value if there is one."""
        option = self.options.get(name)
        if option is None:
            return name if value is None else f"{name}={_shorten(list(value) if isinstance(value, tuple) else value)}"
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        return option if value is None else f"{option} {shlex.quote(text if len(text) <= 80 else f'{text[:77]}...')}"


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What to run. Field names are the keys of the TOML file, but for ``words``, which messages are made with."""

    title: str = ""
    methods: tuple[str, ...] = ("all",)
    tasks: tuple[str, ...] = ()
    scale: str = "smoke"
    model: str | None = None
    revision: str | None = None
    budgets: tuple[str, ...] = ("lora:r=8",)
    tolerance: float = 0.01
    seeds: tuple[int, ...] = (0,)
    learning_rates: tuple[float, ...] = ()
    tune: int = 0
    tune_seeds: int = 1
    halving: bool = False
    until_separated: float | None = None
    max_seeds: int | None = None
    targets: tuple[str, ...] = ()
    precision: str = "auto"
    quantize: str = ""
    rates: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    precisions: Mapping[str, str] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, Any] = field(default_factory=dict)
    words: Words = field(default_factory=Words, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Check what can be checked without plugins."""
        if not self.tasks:
            raise UsageError("no task given; use --task NAME or --suite NAME (`harness list tasks` shows all)")
        say = self.words
        for name in ("methods", "budgets", "seeds"):
            if not getattr(self, name):
                raise UsageError(f"{say(name)} is empty; give at least one")
        for name in ("methods", "tasks", "budgets", "seeds", "learning_rates", "targets"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise UsageError(f"{say(name, values)} names one twice; give each once")
        if strange := [seed for seed in self.seeds if not 0 <= seed <= LARGEST_SEED]:
            raise UsageError(
                f"{say('seeds')}: {_shorten(strange[0])} is not allowed; give whole numbers from 0 to {LARGEST_SEED}"
            )
        if any(not 0 < rate < math.inf for rate in self.learning_rates):
            raise UsageError(f"{say('learning_rates', self.learning_rates)} must be numbers > 0")
        if self.tune and self.learning_rates:
            raise UsageError(f"give either {say('learning_rates')} or {say('tune')}, not both")
        if self.tune != 0 and not 2 <= self.tune <= MOST_RATES:
            raise UsageError(f"{say('tune', self.tune)} must be 0 (off) or from 2 to {MOST_RATES} learning rates")
        if not 1 <= self.tune_seeds <= MOST_TUNE_SEEDS:
            raise UsageError(f"{say('tune_seeds', self.tune_seeds)} must be from 1 to {MOST_TUNE_SEEDS} seeds")
        if self.halving and self.tune_seeds < 2:
            raise UsageError(
                f"{say('halving')} stops what is worse after the first of several seeds; give {say('tune_seeds')}, "
                "e.g. 4"
            )
        self._check_looks()
        if not 0 < self.tolerance < 1:
            raise UsageError(f"{say('tolerance', self.tolerance)} must be a fraction between 0 and 1, e.g. 0.01")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise UsageError(f"{say('precision', self.precision)} is not known; give auto, float32 or bfloat16")
        if self.quantize not in ("", "nf4", "nf4-double"):
            raise UsageError(f"{say('quantize', self.quantize)} is not known; give nf4 or nf4-double, or leave it out")
        for name, rates in self.rates.items():
            if not rates or len(set(rates)) < len(rates) or any(not 0 < rate < math.inf for rate in rates):
                raise UsageError(f"rates: {name}={list(rates)} must be different numbers > 0, at least one")
        for name, precision in self.precisions.items():
            if precision not in ("float32", "bfloat16"):
                raise UsageError(f"precisions: {name}={precision!r} is not known; give float32 or bfloat16")

    def _check_looks(self) -> None:
        say, points = self.words, self.until_separated
        if points is None:
            if self.max_seeds is not None:
                raise UsageError(
                    f"{say('max_seeds', self.max_seeds)} is where {say('until_separated')} stops; give that too, or "
                    f"only {say('seeds')}"
                )
            return
        if not 0 < points < math.inf:
            raise UsageError(
                f"{say('until_separated', points)} must be a number of points > 0, e.g. 5; leave it out to add no seeds"
            )
        if len(self.seeds) < 2:
            raise UsageError(
                f"{say('until_separated')}: one seed tells nothing apart; give at least 2 {say('seeds')} to begin with"
            )
        if not len(self.seeds) < self.most_seeds <= MOST_SEEDS:
            raise UsageError(
                f"{say('max_seeds', self.most_seeds)} is not allowed; give more than the {len(self.seeds)} seeds to "
                f"begin with, and at most {MOST_SEEDS}"
            )
        if max(self.seeds) + self.most_seeds > LARGEST_SEED:
            raise UsageError(
                f"{say('until_separated')}: no seeds are left above {max(self.seeds)}; begin with smaller ones"
            )

    @property
    def most_seeds(self) -> int:
        """Return how many seeds a method may get until it is separated."""
        return max(USUAL_MOST, 2 * len(self.seeds)) if self.max_seeds is None else self.max_seeds

    @property
    def looks(self) -> Looks | None:
        """Return after how many seeds to look whether the methods are separated; ``None``: there are no more seeds."""
        points = self.until_separated
        return None if points is None else Looks.plan(points, self.seeds, self.most_seeds)


def read_suite(path: Path, overrides: Mapping[str, Any] | None = None, words: Words | None = None) -> Suite:
    """Return the suite of a TOML file, with the command line's overrides.

    Rates that are given, or searched, take the place of those that the file gives or searches.

    Args:
        path: The file.
        overrides: Fields of a suite.
        words: What messages call these.

    Raises:
        UsageError: Not TOML, or a key that suites do not have; the message names the file.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # not TOML, not text, a number of too many digits, a nest
        raise UsageError(f"suite {path}: {error}") from error
    where, overrides = f"suite {path}", overrides or {}
    build_suite(data, where)  # the file itself must be right, whatever is overridden
    if {"learning_rates", "tune"} & set(overrides):  # said of every method
        data.pop("rates", None)
    if overrides.get("tune"):
        data.pop("learning_rates", None)
    if "learning_rates" in overrides:
        for name in ("tune", "tune_seeds", "halving"):
            data.pop(name, None)
    if "model" in overrides:  # a revision is one model's
        data.pop("revision", None)
    if "precision" in overrides:
        data.pop("precisions", None)
    merged = {**data, **overrides}
    if _only_excludes(overrides.get("methods", ())):
        merged["methods"] = [*data.get("methods", Suite.methods), *overrides["methods"]]
    for name in ("rates", "precisions"):  # of methods that are not asked for now
        merged[name] = {key: value for key, value in data.get(name, {}).items() if key in merged.get("methods", ())}
    return build_suite(merged, where, words)


def build_suite(data: Mapping[str, Any], where: str = "request", words: Words | None = None) -> Suite:
    """Return a suite from plain values, lists becoming tuples."""
    known = {each.name for each in fields(Suite)} - {"words"}
    unknown = sorted(set(data) - known)
    if unknown:
        raise UsageError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}")
    values: dict[str, Any] = {name: _typed(name, value, where) for name, value in data.items()}
    if _only_excludes(values.get("methods", ())):
        values["methods"] = (*Suite.methods, *values["methods"])
    for name in ("rates", "precisions"):
        if strange := sorted(set(values.get(name, ())) - set(values.get("methods", ()))):
            raise UsageError(
                f"{where}: {name}: {strange[0]!r} is not among the methods; write it as it is written there"
            )
    return Suite(**values, words=words or Words())


def _only_excludes(methods: Sequence[str]) -> bool:
    """Return whether names of methods only say which to leave out: of those that are asked for otherwise."""
    return bool(methods) and all(str(each).startswith("-") for each in methods)


_TYPES: Mapping[str, type] = {  # others: text
    "tolerance": float, "tune": int, "tune_seeds": int, "until_separated": float, "max_seeds": int,
    "halving": bool, "recipe": dict, "published": dict, "rates": dict, "precisions": dict,
}  # fmt: skip
_ITEMS = {"methods": str, "tasks": str, "budgets": str, "seeds": int, "learning_rates": float, "targets": str}


def _shorten(value: Any) -> str:
    """Return a value for a message, however long it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of more digits than Python prints, a nest
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _typed(name: str, value: Any, where: str) -> Any:
    """Return a value as its field's type: lists as tuples, whole numbers as floats where those are meant."""

    def is_a(each: Any, kind: type) -> bool:
        if isinstance(each, bool) or kind is bool:
            return isinstance(each, bool) and kind is bool
        return isinstance(each, (int, float) if kind is float else kind)

    if (kind := _ITEMS.get(name)) is not None:
        if isinstance(value, list | tuple) and all(is_a(each, kind) for each in value):
            return tuple(_convert(name, each, kind, where) for each in value)
        raise UsageError(
            f"{where}: {name}={_shorten(value)} is not a list of {'numbers' if kind is not str else 'texts'}"
        )
    kind = _TYPES.get(name, str)
    if not is_a(value, kind):
        words = {str: "a text", float: "a number", int: "a whole number", dict: "a table", bool: "true or false"}
        raise UsageError(f"{where}: {name}={_shorten(value)} is not {words[kind]}")
    if name == "rates":
        return {key: _typed("learning_rates", rates, f"{where}: rates: {key}") for key, rates in value.items()}
    return _convert(name, value, kind, where)


def _convert(name: str, value: Any, kind: type, where: str) -> Any:
    try:
        return kind(value)
    except OverflowError:  # a whole number beyond every float
        raise UsageError(f"{where}: {name}={_shorten(value)} is too large") from None
