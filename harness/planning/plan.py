"""From a suite to trials: names resolved, budgets solved on the model's real layer shapes, identities computed.

Nothing here loads weights or runs anything. Where something is searched, the trials of a sweep depend on earlier
results: ``search`` says which are needed next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from harness.bases import resolve
from harness.contract.method import Method, TrialContext, attaches
from harness.contract.task import BEST, BEST_LOSS, ModelKind, Task, TaskContext
from harness.contract.trial import OWN, Trial
from harness.data.tables import identify_tables
from harness.engine.attached import check_in_4_bits
from harness.engine.layers import find_layers, select_layers, trained_modules
from harness.engine.model import ModelChoice, build_on_meta, choose_model, count_parameters, load_tokenizer
from harness.engine.quantised import bytes_of
from harness.errors import BudgetError, ConfigError, UsageError
from harness.planning.budget import budget_parameters, solve
from harness.planning.choices import resolve_methods
from harness.planning.counting import FINAL, TRAINED, count_parameters_of
from harness.planning.divided import check_divisible, division_note, why_not
from harness.planning.fitness import check_fitness, check_positions
from harness.planning.registry import Registry
from harness.planning.search import TUNE_SEED, Cell
from harness.planning.settings import parse_value
from harness.planning.suite import Suite


def plan_cells(suite: Suite, registry: Registry, data_dir: Path | None, precision: str, shard: int = 1) -> list[Cell]:
    """Return the cells of a suite.

    Args:
        suite: What to cross.
        registry: Finds methods and tasks.
        data_dir: Local tables, or ``None``.
        precision: ``float32`` or ``bfloat16``, resolved from ``auto``.
        shard: Over how many devices each base model is divided.

    Raises:
        UsageError: Anything named does not exist, does not fit, or cannot reach the budget. All refused methods are
            named at once.
    """
    # Where a budget decides sizes, a size cannot be given as well.
    chosen = {own: resolve_methods(suite.methods, registry, own) for own in {each == OWN for each in suite.budgets}}
    cells: list[Cell] = []
    refused: list[str] = []
    for task_name in suite.tasks:
        task = registry.task(task_name)()
        _check_model(suite, task)
        recipe = resolve_recipe(task, suite)
        context = trial_context(task, recipe)
        data = identify_tables(task.tables(recipe), data_dir)
        choice = choose_model(suite.model or task.model, suite.revision, task, recipe)
        skeleton = build_on_meta(choice, task, recipe)
        limit = check_fitness(choice, task, recipe, skeleton)
        _check_data(task, recipe, choice, skeleton, data_dir)
        if task.trains and not trained_modules(skeleton, task.trains):
            parts = ", ".join(name for name, _ in skeleton.named_children())
            raise UsageError(
                f"task {task.name!r}: trains={', '.join(task.trains)} matches no module of model {choice.name!r}, so "
                f"its head would stay as it is; the model's outermost modules are: {parts}"
            )
        check_positions(limit, choice, task, recipe, data_dir)
        found = find_layers(skeleton, task.trains)
        is_users = suite.targets not in ((), tuple(task.targets))  # of whose patterns each must match
        layers = select_layers(found.shapes, suite.targets or task.targets, is_users)
        if shard > 1:
            said = suite.words("quantize", suite.quantize) if suite.quantize else ""
            check_divisible(choice, skeleton, layers, said)
        of_count: dict[int, str] = {}
        for budget_number, budget in enumerate(suite.budgets):
            is_own = budget == OWN
            asked = None
            if not is_own:
                whole = count_parameters(skeleton)
                asked = budget_parameters(budget, layers, whole, registry, context, skeleton)
                if (same := of_count.setdefault(asked, budget)) != budget:
                    raise UsageError(
                        f"{suite.words('budgets')}: {same!r} and {budget!r} are both {asked:,} parameters for task "
                        f"{task.name!r}, and every trial would be trained twice; give one of them"
                    )
            for picked in chosen[is_own]:
                method = picked.method
                if method.traits.reference and budget_number:
                    continue  # outside every budget: once is enough
                if shard > 1 and (why := why_not(method)):
                    refused.append(f"{method.name}: {why}, and --shard {shard} divides the one that all share")
                    continue
                common: dict[str, Any] = {
                    "task": task.name, "scale": suite.scale, "recipe": asdict(recipe), "model": choice.name,
                    "model_revision": choice.revision, "method": method.name, "targets": suite.targets or task.targets,
                    "precision": suite.precisions.get(picked.written, precision), "data": data,
                    "learning_rate": 0.0, "seed": 0, "quantize": suite.quantize,
                    "plugins": {
                        "method": registry.origins["method", method.name].identity,
                        "task": registry.origin("task", task.name).identity,
                    },
                    "searched": picked.written if len(picked.configs) > 1 else "",
                }  # fmt: skip
                try:
                    template, *others = [
                        _solve_trial(method, config, asked, budget, layers, skeleton, suite.tolerance, context, common)
                        for config in picked.configs
                    ]
                except (BudgetError, ConfigError) as error:
                    refused.append(f"{task.name}: {error}")
                    continue
                if suite.quantize and attaches(method):
                    try:
                        built, _ = template.build_methods(method)
                        check_in_4_bits(built, skeleton, layers, found.places, suite.quantize)
                    except ConfigError as error:
                        refused.append(f"{method.name}: {suite.words('quantize', suite.quantize)}: {error}")
                        continue
                centre = recipe.learning_rate * method.traits.learning_rate_factor
                if not centre > 0 and not (suite.learning_rates or suite.rates.get(picked.written)):
                    raise UsageError(
                        f"task {task.name!r}: learning_rate={recipe.learning_rate:g} trains nothing; give a rate > 0"
                    )
                given = suite.rates.get(picked.written, ())
                asked_rates = given or suite.learning_rates
                if not (method.traits.trains or task.trains):
                    given = asked_rates = ()  # nothing trains, at whatever rate
                cell = Cell(
                    template=template,
                    others=tuple(others),
                    rates=asked_rates or (float(f"{centre:.6g}"),),
                    chooses=len(given) > 1,
                    tune=suite.tune if not given and (method.traits.trains or task.trains) else 0,
                    seeds=suite.seeds,
                    tune_seeds=tuple(range(TUNE_SEED, TUNE_SEED + suite.tune_seeds)),
                    halves=suite.halving,
                    centre=centre,
                    higher_is_better=task.metrics[task.main_metric].higher_is_better,
                    notes=(
                        *(f"{choice.name}: no adapter for layers {each}" for each in found.left_out),
                        *_quantised_note(choice, found.shapes, suite.quantize),
                        *([division_note(choice, skeleton, task.trains, shard)] if shard > 1 else []),
                        *_width_note(template, method.traits.budget_knob, layers),
                    ),
                )
                cells.append(cell)
    if refused:
        raise BudgetError(
            "\n".join(
                [*refused, "Nothing was run. Change the budget or the settings, or leave methods out with --exclude."]
            )
        )
    _check_seeds(suite, cells)
    return cells


def _check_model(suite: Suite, task: Task) -> None:
    """Refuse what is said of a model and would not count."""
    given = [name for name in ("model", "revision") if getattr(suite, name)]
    if task.model_kind is ModelKind.FROM_SCRATCH and given:
        said = suite.words(given[0], getattr(suite, given[0]))
        raise UsageError(f"{said}: task {task.name!r} trains a model of its own from scratch; leave it out")
    name = suite.model or task.model
    if suite.revision and Path(resolve(name)).is_dir():
        said = suite.words("revision", suite.revision)
        raise UsageError(f"{said}: model {name!r} is a folder here, not one of the hub's; leave it out")


def _check_seeds(suite: Suite, cells: Sequence[Cell]) -> None:
    """Refuse to report on a seed of the search, and seeds of a search that there is not."""
    searched = {seed for cell in cells if cell.searches for seed in cell.tune_seeds}
    if both := sorted(searched & set(suite.looks.seeds if suite.looks else suite.seeds)):
        raise UsageError(f"{suite.words('seeds')}: {both[0]} is the seed on which rates are searched; report on others")
    if suite.tune_seeds > 1 and not searched:
        raise UsageError(
            f"{suite.words('tune_seeds', suite.tune_seeds)}, but nothing is searched; give {suite.words('tune')}, too, "
            "or leave it out"
        )


def _width_note(trial: Trial, knob: str | None, layers: Mapping[str, tuple[int, int]]) -> list[str]:
    value, width = trial.config.get(knob or ""), max(map(min, layers.values()))
    if not trial.is_matched or not isinstance(value, int) or value <= width:
        return []
    return [
        f"{trial.method}: this budget means {knob}={value:,}, beyond the width of every layer ({width:,}): a step "
        "costs more than at its paper's size"
    ]


def _quantised_note(choice: ModelChoice, shapes: Mapping[str, tuple[int, int]], quantize: str) -> list[str]:
    if not quantize:
        return []
    values = sum(inner * outer for inner, outer in shapes.values())
    taken = bytes_of(shapes.values(), quantize)
    return [
        f"{choice.name}: the weights of {len(shapes)} linear layers are kept in 4 bits ({quantize}): "
        f"{taken / 1e6:,.1f} MB, in bfloat16 {2 * values / 1e6:,.1f} MB"
    ]


def _check_data(task: Task, recipe: Any, choice: ModelChoice, skeleton: Any, data_dir: Path | None) -> None:
    """Let a task look at its data, if it does; only then is there a tokenizer to load."""
    if type(task).check is not Task.check:
        tokenizer = load_tokenizer(choice, task, recipe)
        task.check(TaskContext(tokenizer=tokenizer, recipe=recipe, seed=0, data_dir=data_dir, base_model=skeleton))


def _solve_trial(
    method: type[Method], config: Any, asked: int | None, budget: str, layers: Mapping[str, tuple[int, int]],
    skeleton: Any, tolerance: float, context: TrialContext, common: Mapping[str, Any],
) -> Trial:  # fmt: skip
    if method.traits.reference or asked is None:
        final, trained = (
            count_parameters_of(method, config, layers, skeleton, context, each) for each in (FINAL, TRAINED)
        )
        said = ("", None) if method.traits.reference else (budget, final)
        return Trial(
            **common, config=asdict(method.resolve(config, context)), budget=said[0], budget_parameters=said[1],
            adapter_parameters=trained, final_parameters=None if final == trained else final,
        )  # fmt: skip
    solution = solve(method, config, asked, layers, tolerance, context, skeleton)
    return Trial(
        **common,
        config=asdict(solution.config),
        layer_settings=solution.layer_settings,
        budget=budget,
        budget_parameters=asked,
        adapter_parameters=solution.trained,
        final_parameters=None if solution.trained == solution.parameters else solution.parameters,
        largest=solution.largest,
    )


def trial_context(task: Task | type[Task], recipe: Any) -> TrialContext:
    """Return what is known of a trial on a task before its data is read."""
    return TrialContext(task.purpose, None if recipe.steps == "auto" else recipe.steps)


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
    if recipe.checkpoint == BEST_LOSS and type(task).validation_examples is Task.validation_examples:
        raise UsageError(
            f"task {task.name!r} does not say which examples its validation has, so checkpoint={BEST_LOSS} has no loss "
            f"to choose by; give checkpoint={BEST}, which goes by {task.main_metric}"
        )
    if recipe.checkpoint != "last" and not recipe.evaluate_at:
        raise UsageError(
            f"task {task.name!r}: checkpoint={recipe.checkpoint} chooses among the updates of evaluate_at, and there "
            "are none; give some, e.g. --set evaluate_at=100+200+300"
        )
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
            value = parse_value(value, default, f"task {task.name!r}: {name}", kind)
        elif isinstance(value, list):
            value = tuple(value)
        elif isinstance(getattr(recipe, name), float) and type(value) is int:
            value = float(value)  # 1 and 1.0 are one setting, and must give one id
        changes[name] = value
    if "epochs" in changes and "steps" not in changes:
        changes["steps"] = "auto"
    return changes
