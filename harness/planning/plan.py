"""From a suite to trials: names resolved, budgets solved on the model's real layer shapes, identities computed.

Nothing here loads weights or runs anything. With learning-rate tuning the trials of a sweep depend on earlier results,
so ``pending`` is asked again after each round; it is a pure function of the cells and the records so far.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from harness.contract.method import Method, TrialContext, attaches
from harness.contract.record import Record, State
from harness.contract.task import Task, TaskContext
from harness.contract.trial import Trial
from harness.data.tables import identify_tables
from harness.engine.layers import find_layers, select_layers, trained_modules
from harness.engine.model import ModelChoice, build_on_meta, choose_model, count_parameters, load_tokenizer
from harness.errors import BudgetError, ConfigError, UsageError
from harness.planning.budget import budget_parameters, count_on_layers, parse_settings_but_knob, parse_value, solve
from harness.planning.fitness import check_fitness
from harness.planning.registry import Registry
from harness.planning.suite import Suite

TUNE_SEED = 1_000_003  # rates are chosen on a seed that no report uses
MOST_EXTENSIONS = 4  # times that a grid grows when its best rate lies on an edge


@dataclass(frozen=True)
class Cell:
    """One (task, model, budget, method): what gets a score. Its trials differ in learning rate, seed and purpose.

    Attributes:
        template: A trial with everything but learning rate, seed and purpose.
        rates: Learning rates to report at; several only where the user gave them.
        tune: Size of the first learning-rate grid; 0: no search.
        seeds: Of the reported trials.
        centre: Where the grid is centred.
        higher_is_better: Direction of the task's main metric.
        notes: What a reader must know of the model, e.g. which of its layers get no adapter, and why.
    """

    template: Trial
    rates: tuple[float, ...]
    tune: int
    seeds: tuple[int, ...]
    centre: float
    higher_is_better: bool
    notes: tuple[str, ...] = ()

    def trial(self, learning_rate: float, seed: int, purpose: str) -> Trial:
        """Return one trial of this cell."""
        return replace(self.template, learning_rate=float(learning_rate), seed=seed, purpose=purpose)

    def grid(self, below: int = 0, above: int = 0) -> list[float]:
        """Return the learning rates of the search, half a decade apart, extended on either side."""
        first = -(self.tune // 2) - below
        steps = range(first, first + self.tune + below + above)
        return [float(f"{self.centre * 10 ** (step / 2):.3g}") for step in steps]


def plan_cells(suite: Suite, registry: Registry, data_dir: Path | None, precision: str) -> list[Cell]:
    """Return the cells of a suite.

    Args:
        suite: What to cross.
        registry: Finds methods and tasks.
        data_dir: Local tables, or ``None``.
        precision: ``float32`` or ``bfloat16``, resolved from ``auto``.

    Raises:
        UsageError: Anything named does not exist, does not fit, or cannot reach the budget. All refused methods are
            named at once.
    """
    if suite.tune and TUNE_SEED in suite.seeds:
        raise UsageError(f"seeds: {TUNE_SEED} is the seed on which rates are searched; report on others")
    chosen = resolve_methods(suite.methods, registry)
    cells: list[Cell] = []
    refused: list[str] = []
    for task_name in suite.tasks:
        task = registry.task(task_name)()
        recipe = resolve_recipe(task, suite)
        context = trial_context(task, recipe)
        data = identify_tables(task.tables(recipe), data_dir)
        choice = choose_model(suite.model or task.model, suite.revision, task, recipe)
        skeleton = build_on_meta(choice, task, recipe)
        _check_data(task, recipe, choice, skeleton, data_dir)
        if task.trains and not trained_modules(skeleton, task.trains):
            parts = ", ".join(name for name, _ in skeleton.named_children())
            raise UsageError(
                f"task {task.name!r}: trains={', '.join(task.trains)} matches no module of model {choice.name!r}, so "
                f"its head would stay as it is; the model's outermost modules are: {parts}"
            )
        check_fitness(choice, task, recipe, skeleton, data_dir)
        found = find_layers(skeleton, task.trains)
        layers = select_layers(found.shapes, suite.targets or task.targets, bool(suite.targets))
        for budget_number, budget in enumerate(suite.budgets):
            asked = budget_parameters(budget, layers, count_parameters(skeleton), registry, context)
            for method, config in chosen:
                if method.traits.reference and budget_number:
                    continue  # outside every budget: once is enough
                common: dict[str, Any] = {
                    "task": task.name, "scale": suite.scale, "recipe": asdict(recipe), "model": choice.name,
                    "model_revision": choice.revision, "method": method.name, "targets": suite.targets or task.targets,
                    "precision": precision, "data": data, "learning_rate": 0.0, "seed": 0,
                    "plugins": {
                        "method": registry.origins["method", method.name].identity,
                        "task": registry.origin("task", task.name).identity,
                    },
                }  # fmt: skip
                try:
                    template = _solve_trial(
                        method, config, budget, asked, layers, skeleton, suite.tolerance, context, common
                    )
                except (BudgetError, ConfigError) as error:
                    refused.append(f"{task.name}: {error}")
                    continue
                centre = recipe.learning_rate * method.traits.learning_rate_factor
                cell = Cell(
                    template=template,
                    rates=suite.learning_rates or (float(f"{centre:.6g}"),),
                    tune=suite.tune,
                    seeds=suite.seeds,
                    centre=centre,
                    higher_is_better=task.metrics[task.main_metric].higher_is_better,
                    notes=tuple(f"{choice.name}: no adapter for layers {each}" for each in found.left_out),
                )
                cells.append(cell)
    if refused:
        raise BudgetError(
            "\n".join(
                [*refused, "Nothing was run. Change the budget or the settings, or leave methods out with --exclude."]
            )
        )
    return cells


def _check_data(task: Task, recipe: Any, choice: ModelChoice, skeleton: Any, data_dir: Path | None) -> None:
    """Let a task look at its data, if it does; only then is there a tokenizer to load."""
    if type(task).check is not Task.check:
        tokenizer = load_tokenizer(choice, task, recipe)
        task.check(TaskContext(tokenizer=tokenizer, recipe=recipe, seed=0, data_dir=data_dir, base_model=skeleton))


def _solve_trial(
    method: type[Method], config: Any, budget: str, asked: int, layers: Mapping[str, tuple[int, int]],
    skeleton: Any, tolerance: float, context: TrialContext, common: Mapping[str, Any],
) -> Trial:  # fmt: skip
    if method.traits.reference:
        count = count_parameters(skeleton) if attaches(method) else count_on_layers(method, config, layers, context)
        resolved = method.resolve(config, context)
        return Trial(**common, config=asdict(resolved), budget="", budget_parameters=None, adapter_parameters=count)
    solution = solve(method, config, asked, layers, tolerance, context)
    return Trial(
        **common,
        config=asdict(solution.config),
        layer_settings=solution.layer_settings,
        budget=budget,
        budget_parameters=asked,
        adapter_parameters=solution.parameters,
    )


def trial_context(task: Task | type[Task], recipe: Any) -> TrialContext:
    """Return what is known of a trial on a task before its data is read."""
    return TrialContext(task.purpose, None if recipe.steps == "auto" else recipe.steps)


def resolve_methods(names: Sequence[str], registry: Registry) -> list[tuple[type[Method], Any]]:
    """Return (method, config) pairs for names, ``all``, ``everything``, ``name:field=value``; ``-name`` excludes."""
    excluded = {name[1:] for name in names if name.startswith("-")}
    for name in excluded:
        registry.method(name)
    chosen: dict[tuple[str, str], tuple[type[Method], Any]] = {}
    for name in names:
        if name.startswith("-"):
            continue
        if name in ("all", "everything"):
            found = [m for m in registry.methods.values() if name == "everything" or m.traits.in_all]
        else:
            found = [registry.method(name.partition(":")[0])]
        for method in found:
            if method.name not in excluded:
                config = parse_settings_but_knob(name.partition(":")[2], method)
                chosen[method.name, repr(config)] = (method, config)
    if not chosen:
        raise UsageError(f"methods={', '.join(names)} leaves nothing to run; exclude fewer")
    return list(chosen.values())


def split_names(text: str) -> list[str]:
    """Split a comma-separated list of names, keeping commas between the settings of one name (``a:x=1,y=2,b``)."""
    return [each.strip() for each in re.split(r",(?!\w+=)", text) if each.strip()]


def resolve_recipe(task: Task, suite: Suite) -> Any:
    """Return the task's recipe at the suite's scale, with overrides. Those that are text were set by hand (``--set``).

    Raises:
        UsageError: A scale or field that the task has not, a value that the field does not allow, no steps at all, or
            an evaluation set by hand that would come after the last step.
    """
    if suite.scale not in task.recipes:
        raise UsageError(f"task {task.name!r} has no scale {suite.scale!r}; it has {', '.join(task.recipes)}")
    recipe = task.recipes[suite.scale]
    scales = {name: table for name, table in suite.recipe.items() if isinstance(table, Mapping)}
    if strange := sorted(set(scales) - set(task.recipes)):
        raise UsageError(f"task {task.name!r}: recipe.{strange[0]} names no scale; it has {', '.join(task.recipes)}")
    plain = {name: value for name, value in suite.recipe.items() if name not in scales}
    for given in (scales.get(suite.scale, {}), plain):  # what is said of every scale, and --set, come last and win
        recipe = replace(recipe, **_read_changes(given, recipe, task))
    if recipe.steps == "auto" and not recipe.epochs:
        raise UsageError(f"task {task.name!r}: neither steps nor epochs are given; give --steps N or --set epochs=N")
    if recipe.steps == "auto":  # how many steps the epochs make is known once the data is read
        return recipe
    late = [step for step in recipe.evaluate_at if step > recipe.steps]
    if late and isinstance(plain.get("evaluate_at"), str):
        raise UsageError(
            f"task {task.name!r}: evaluate_at={plain['evaluate_at']} names step {late[0]}, but step {recipe.steps} is "
            f"the last; give steps of at most {recipe.steps}, or train longer with --steps N"
        )
    # A shorter run than the recipe's or the suite's keeps those of its evaluations that come before the end.
    return replace(recipe, evaluate_at=tuple(step for step in recipe.evaluate_at if step < recipe.steps))


def _read_changes(given: Mapping[str, Any], recipe: Any, task: Task) -> dict[str, Any]:
    known = {each.name: each for each in fields(recipe)}
    changes: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise UsageError(f"task {task.name!r}: the recipe has no {name!r}; it has {', '.join(known)}")
        if isinstance(value, str):
            kind = known[name].metadata.get("kind")
            default = known[name].default if kind else getattr(recipe, name)
            value = parse_value(value, default, f"recipe: {name}", kind)
        elif isinstance(value, list):
            value = tuple(value)
        elif isinstance(getattr(recipe, name), float) and type(value) is int:
            value = float(value)  # 1 and 1.0 are one setting, and must give one id
        changes[name] = value
    if "epochs" in changes and "steps" not in changes:
        changes["steps"] = "auto"
    return changes


def has_ended(record: Record) -> bool:
    """Return whether a trial came to an end of its own, good or bad. Whether a bad one is tried again, runs decide."""
    return record.state is not State.INTERRUPTED


def pending(
    cells: Sequence[Cell], look_up: Callable[[Trial], Record | None], settles: Callable[[Record], bool] = has_ended
) -> list[Trial]:
    """Return the trials that can and must run now, in order of cells; empty when the sweep is complete.

    Args:
        cells: Of the sweep.
        look_up: Returns a trial's record, or ``None``.
        settles: Whether a record leaves nothing to do (``planning.retry``).
    """
    return [
        trial
        for cell in cells
        for trial in wanted(cell, look_up, settles)
        if (record := look_up(trial)) is None or not settles(record)
    ]


def wanted(
    cell: Cell, look_up: Callable[[Trial], Record | None], settles: Callable[[Record], bool] = has_ended
) -> list[Trial]:
    """Return every trial of a cell that is known to be needed, finished or not."""
    if not cell.tune:
        return [cell.trial(rate, seed, "report") for rate in cell.rates for seed in cell.seeds]
    below = above = 0
    while True:
        rates = cell.grid(below, above)
        search = [cell.trial(rate, TUNE_SEED, "tune") for rate in rates]
        records = [look_up(trial) for trial in search]
        if not all(record is not None and settles(record) for record in records):
            return search
        best = best_index(records, cell.higher_is_better)
        if best is None:  # nothing trained at any rate: report the centre, whose failure is a result
            return [*search, *(cell.trial(cell.grid()[cell.tune // 2], seed, "report") for seed in cell.seeds)]
        if best == 0 and below < MOST_EXTENSIONS:
            below += 1
        elif best == len(rates) - 1 and above < MOST_EXTENSIONS:
            above += 1
        else:
            return [*search, *(cell.trial(rates[best], seed, "report") for seed in cell.seeds)]


def best_index(records: Sequence[Record | None], higher_is_better: bool) -> int | None:
    """Return the place of the best score; ties go to the one nearest the middle, so that a flat grid does not grow."""
    scored = [
        (place, r.score)
        for place, r in enumerate(records)
        if r is not None and r.score is not None and math.isfinite(r.score)
    ]
    if not scored:
        return None
    sign = 1 if higher_is_better else -1
    middle = (len(records) - 1) / 2
    return max(scored, key=lambda each: (sign * each[1], -abs(each[0] - middle)))[0]
