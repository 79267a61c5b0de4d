"""The command line. Commands import what they need, so that ``harness --help`` answers at once."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness import __version__
from harness.errors import HarnessError, UsageError

if TYPE_CHECKING:
    from harness.plan import Cell
    from harness.record import Record
    from harness.registry import Registry
    from harness.store import Store
    from harness.suite import Suite
    from harness.trial import Trial

TRACKING_INCOMPLETE = 3  # exit code: every result is there, an observer failed
TRIALS_FAILED = 4  # exit code: the sweep is complete, some trials failed or diverged
INTERRUPTED = 130


class Commands(click.Group):
    """The built-in commands and those of other packages, from entry points of group ``harness.commands``."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return all names, without importing anything."""
        return sorted(
            {*super().list_commands(context), *(each.name for each in metadata.entry_points(group="harness.commands"))}
        )

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Return a command, importing it on first use."""
        built_in = super().get_command(context, name)
        if built_in is not None:
            return built_in
        found = [each for each in metadata.entry_points(group="harness.commands") if each.name == name]
        command: click.Command | None = found[0].load() if found else None
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="harness")
@click.option(
    "--block", multiple=True, metavar="PLUGIN", help="Leave a plugin or distribution out (also HARNESS_BLOCK=a,b)."
)
@click.option("-v", "--verbose", is_flag=True, help="Log what happens inside, with tracebacks.")
@click.pass_context
def app(context: click.Context, block: tuple[str, ...], verbose: bool) -> None:
    r"""Compare parameter-efficient fine-tuning methods fairly: same budget, same tuning, several seeds.

    \b
    harness run --methods all --task uuid     train and score every method on a task
    harness leaderboard                       render the results as a page
    harness list methods                      see what there is
    """
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    context.obj = block


def main() -> None:
    """Run the command line; foreseeable errors print one message and no traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except HarnessError as error:
        click.echo(f"harness: {error}", err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("harness: interrupted; finished trials are kept, run the same command to go on", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of our output went away, e.g. `| head`
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123
        sys.exit(0)


# --- options ----------------------------------------------------------------------------------------------------------


def suite_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what to run."""
    option = click.option
    options = [
        option("--suite", "suite_name", metavar="NAME", help="A registered suite or .toml file, to be overridden."),
        option("--methods", "--method", metavar="NAMES",
               help="Comma-separated: all, everything, lora, mora:operator=rotation."),
        option("--exclude", default="", metavar="NAMES", help="Methods to leave out."),
        option("--tasks", "--task", metavar="NAMES", help="Comma-separated task names."),
        option("--scale", metavar="NAME", help="Which recipe: smoke, small or paper.  [default: smoke]"),
        option("--model", metavar="NAME", help="A shipped base, hub id or local folder.  [default: the task's]"),
        option("--revision", metavar="COMMIT", help="Of a hub model."),
        option("--budget", "budgets", multiple=True, metavar="BUDGET",
               help="lora:r=8, 0.5% or 300k.  [default: lora:r=8]"),
        option("--tolerance", type=float, metavar="FRACTION",
               help="Largest deviation from the budget.  [default: 0.01]"),
        option("--seeds", metavar="N|LIST", help="A number of seeds, or a list like 0,1,2.  [default: 1]"),
        option("--learning-rates", "--lr", metavar="LIST",
               help="The same rates for every method, instead of the recipe's."),
        option("--tune", type=int, metavar="N", help="Search N learning rates per method on validation first."),
        option("--targets", metavar="PATTERNS",
               help="Layers to adapt, e.g. '*q_proj,*v_proj'.  [default: the task's]"),
        option("--precision", metavar="NAME", help="auto, float32 or bfloat16.  [default: auto]"),
        option("--set", "settings", multiple=True, metavar="FIELD=VALUE",
               help="Override a field of the task's recipe."),
        option("--steps", type=int, metavar="N", help="Short for --set steps=N."),
        option("--data-dir", type=click.Path(path_type=Path, exists=True, file_okay=False), envvar="HARNESS_DATA_DIR",
               help="Folder of local tables."),
        option("--results", default="results", show_default=True, envvar="HARNESS_RESULTS", metavar="URL",
               help="Result root: a folder or any fsspec URL."),
    ]  # fmt: skip
    for each in reversed(options):
        command = each(command)
    return command


def build_suite_from_options(registry: Registry, options: Mapping[str, Any]) -> Suite:
    """Return the suite that the command line asks for."""
    from dataclasses import replace

    from harness.plan import split_names
    from harness.suite import build_suite, read_suite

    given: dict[str, Any] = {
        name: options[name]
        for name in ("scale", "model", "revision", "tolerance", "tune", "precision")
        if options[name] is not None
    }
    if options["methods"]:
        given["methods"] = split_names(options["methods"])
    if options["exclude"]:
        given["methods"] = [*given.get("methods", ["all"]), *(f"-{name}" for name in split_names(options["exclude"]))]
    if options["tasks"]:
        given["tasks"] = split_names(options["tasks"])
    if options["budgets"]:
        given["budgets"] = list(options["budgets"])
    if options["seeds"]:
        given["seeds"] = parse_seeds(options["seeds"])
    if options["learning_rates"]:
        given["learning_rates"] = [parse_number(each) for each in split_names(options["learning_rates"])]
    if options["targets"]:
        given["targets"] = split_names(options["targets"])
    recipe: dict[str, Any] = {}
    for each in options["settings"]:
        name, equals, value = each.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"--set {each!r}: write FIELD=VALUE, e.g. --set batch_size=8")
        recipe[name.strip()] = value
    if options["steps"] is not None:
        recipe["steps"] = options["steps"]
    if options["suite_name"]:
        path = registry.suite(options["suite_name"])
        suite = read_suite(path, given)
        suite = replace(suite, title=suite.title or path.stem, recipe={**suite.recipe, **recipe})
    else:
        suite = build_suite({**given, "recipe": recipe})
    return replace(suite, tasks=tuple(expand_tasks(suite.tasks, registry)))


def expand_tasks(names: Sequence[str], registry: Registry) -> list[str]:
    """Return task names; a family name like ``glue`` stands for every ``glue/...``."""
    found: list[str] = []
    for name in names:
        family = [each for each in registry.tasks if each.startswith(f"{name}/")]
        found += family if family and name not in registry.tasks else [registry.task(name).name]
    return list(dict.fromkeys(found))


def parse_seeds(text: str) -> list[int]:
    """Return seeds: ``5`` is five of them, ``0,3`` or ``7,`` is a list."""
    try:
        return [int(each) for each in text.split(",") if each.strip()] if "," in text else list(range(int(text)))
    except ValueError:
        raise UsageError(f"--seeds {text!r}: give a number of seeds (5) or a list (0,1,2)") from None


def parse_number(text: str) -> float:
    """Return a number, or raise a usage error naming it."""
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{text!r} is not a number") from None


def resolve_precision(name: str, device: str) -> str:
    """Return float32 or bfloat16: ``auto`` is bfloat16 on a GPU."""
    return name if name != "auto" else ("bfloat16" if device.startswith("cuda") else "float32")


def resolve_devices(device: str, workers: int) -> tuple[tuple[str, ...], int]:
    """Return one device per worker, and CPU threads per worker (0: PyTorch's choice).

    Every GPU gets one worker. On a CPU each worker gets its own share of the cores.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        count = torch.cuda.device_count()
        if count == 0:
            raise UsageError(f"--device {device}: PyTorch sees no CUDA device here; use --device cpu")
        known = [f"cuda:{number}" for number in range(count)]
        names = known if device == "cuda" else [device]
        if not set(names) <= set(known):
            raise UsageError(f"--device {device!r} is not here; give {', '.join(known)}")
        return tuple(names[number % len(names)] for number in range(workers or len(names))), 0
    if device != "cpu":
        raise UsageError(f"--device {device!r} is not known; give auto, cpu, cuda or cuda:N")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    number = workers or min(cores, 2)
    return ("cpu",) * number, max(1, cores // number)


def parse_pack(text: str, device: str) -> int:
    """Return the most trials in a pack; 0: the worker measures. On a CPU packing saves nothing, so ``auto`` is 1."""
    if text in ("auto", "off"):
        return 0 if text == "auto" and device.startswith("cuda") else 1
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise UsageError(f"--pack {text!r}: give auto, off or a number of trials")


# --- run and plan -----------------------------------------------------------------------------------------------------


@app.command()
@suite_options
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="Print the trials as JSON.")
@click.pass_obj
def plan(block: tuple[str, ...], /, device: str, as_json: bool, **options: Any) -> None:
    """Show what a run would do: trials, settings, counts and what is finished. Loads no weights."""
    from harness.plan import plan_cells, wanted
    from harness.registry import build_registry
    from harness.store import Store

    registry = build_registry(block)
    suite = build_suite_from_options(registry, options)
    precision = resolve_precision(suite.precision, resolve_devices(device, 0)[0][0])
    cells = plan_cells(suite, registry, options["data_dir"], precision)
    store = Store(options["results"])
    look_up = cache(lambda trial_id: store.read(trial_id))
    trials = [trial for cell in cells for trial in wanted(cell, lambda trial: look_up(trial.id))]
    states = {trial.id: record.state.value if (record := look_up(trial.id)) else "to do" for trial in trials}
    if as_json:
        click.echo(json.dumps([{"id": t.id, "state": states[t.id], **t.to_json()} for t in trials], indent=1))
        return
    click.echo(plan_table(cells, trials, states))


def plan_table(cells: Sequence[Cell], trials: Sequence[Trial], states: Mapping[str, str]) -> str:
    """Return the trials of a plan as text."""
    from tabulate import tabulate

    rows = []
    for trial in trials:
        asked = trial.budget_parameters
        steps = trial.recipe["steps"] or f"{trial.recipe['epochs']:g} epochs"
        settings = ", ".join(f"{k}={v}" for k, v in trial.config.items())
        if trial.layer_settings:
            settings += f"; {len(trial.layer_settings)} layers differ"
        deviation = "reference" if asked is None else f"{(trial.adapter_parameters - asked) / asked:+.2%}"
        rows.append(
            [trial.task, trial.method, f"{trial.adapter_parameters:,}", deviation, steps, f"{trial.learning_rate:g}",
             trial.seed, trial.purpose, trial.id, states[trial.id], settings]
        )  # fmt: skip
    heads = ["task", "method", "parameters", "vs budget", "steps", "lr", "seed", "purpose", "id", "state", "settings"]
    todo = sum(state in ("to do", "interrupted") for state in states.values())
    budgets = ", ".join(dict.fromkeys(each.template.budget for each in cells if each.template.budget)) or "none"
    where = f"model {trials[0].model}, {trials[0].precision}, budget {budgets}"
    more = " (more follow once the learning rates are chosen)" if any(c.tune for c in cells) else ""
    return f"{where}\n{tabulate(rows, heads, disable_numparse=True)}\n{len(trials)} trials, {todo} to do{more}"


@app.command()
@suite_options
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--workers", type=click.IntRange(min=0), default=0, help="Worker processes.  [default: one per GPU; two on a CPU]"
)
@click.option("--pack", default="auto", show_default=True, help="Trials trained together: auto, off or a number.")
@click.option(
    "--compile",
    "compiled",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Compile the model where that saves time.",
)
@click.option("--recompute", "recomputes", is_flag=True, help="Keep no activations: less memory, a third more time.")
@click.option("--trial-seconds", type=click.FloatRange(min=0), default=0.0, help="Time limit of one trial; 0: none.")
@click.option("--no-mlflow", is_flag=True, help="Do not track with MLflow.")
@click.option("--allow-code-execution", is_flag=True, help="Let tasks run model-written code, in a sandbox.")
@click.option("-q", "--quiet", is_flag=True, help="Show failures and the final table only.")
@click.pass_obj
def run(
    block: tuple[str, ...], /, device: str, workers: int, pack: str, compiled: str, recomputes: bool,
    trial_seconds: float,
    no_mlflow: bool, allow_code_execution: bool, quiet: bool, **options: Any,
) -> int:  # fmt: skip
    """Train and score methods on tasks. Finished trials are never run again."""
    import torch

    from harness.environment import describe_environment
    from harness.plan import pending, plan_cells
    from harness.progress import Display
    from harness.registry import build_registry
    from harness.schedule import Scheduler, Settings
    from harness.store import Store

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster's "stop" is a Ctrl-C
    if no_mlflow:
        block = (*block, "trackers:mlflow")
    registry = build_registry(block)
    suite = build_suite_from_options(registry, options)
    devices, threads = resolve_devices(device, workers)
    store = Store(options["results"])
    settings = Settings(
        devices=devices,
        threads=threads,
        pack=parse_pack(pack, devices[0]),
        compiled=compiled,
        recomputes=recomputes,
        published=suite.published,
        data_dir=options["data_dir"],
        block=block,
        trial_seconds=trial_seconds,
        allow_code_execution=allow_code_execution,
        environment={
            **describe_environment(torch.device("cpu")),
            "results_root": store.root,
            "sweep": suite.title or " ".join(suite.tasks),
        },
    )
    display = Display(quiet)
    scheduler = Scheduler(registry, store, settings, display)
    known: dict[str, Record] = {}

    def look_up(trial: Trial) -> Record | None:
        if trial.id not in known and (record := store.read(trial.id)) is not None:
            known[trial.id] = record
        return known.get(trial.id)

    try:
        scheduler.start()
        cells = plan_cells(suite, registry, options["data_dir"], resolve_precision(suite.precision, devices[0]))
        store.prepare()
        todo = pending(cells, look_up)
        with display:
            while todo:
                display.expect(len(todo))
                scheduler.run(todo)
                done = {trial.id for trial in todo}
                for trial_id in done:
                    known.pop(trial_id, None)
                todo = [trial for trial in pending(cells, look_up) if trial.id not in done]
    finally:
        scheduler.close()
    records = finished(cells, look_up)
    click.echo(summary(registry, records))
    if display.total:
        click.echo(f"Records are in {store.root}. `harness leaderboard` renders them as a page.", err=True)
    else:
        click.echo(f"Nothing to train: all {len(records)} trials are in {store.root}.", err=True)
    if scheduler.observers.failures:
        click.echo(
            "harness: results complete, tracking incomplete (see the warnings); `harness track rebuild` repairs it",
            err=True,
        )
        return TRACKING_INCOMPLETE
    failed = [each for each in records if each.state != "complete" and each.trial.purpose == "report"]
    for each in failed:
        click.echo(f"harness: {each.trial.label} {each.state}: `harness results show {each.trial_id}`", err=True)
    return TRIALS_FAILED if failed else 0


def finished(cells: Sequence[Cell], look_up: Callable[[Trial], Record | None]) -> list[Record]:
    """Return the records of a sweep's trials."""
    from harness.plan import wanted

    return [record for cell in cells for trial in wanted(cell, look_up) if (record := look_up(trial)) is not None]


def summary(registry: Registry, records: Sequence[Record]) -> str:
    """Return what plugins have to say about a finished sweep, usually a table."""
    return "\n".join(reversed(registry.hook.harness_summarize(records=records)))  # pluggy: last registered first


# --- looking around ---------------------------------------------------------------------------------------------------


@app.command("list")
@click.argument("kind", type=click.Choice(["methods", "tasks", "suites"]))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def list_(block: tuple[str, ...], kind: str, as_json: bool) -> None:
    """List methods, tasks or suites, and where each comes from."""
    from tabulate import tabulate

    from harness.registry import build_registry

    registry = build_registry(block)
    rows: list[dict[str, Any]] = []
    for name, thing in getattr(registry, kind).items():
        origin = registry.origins[kind[:-1], name]
        row: dict[str, Any] = {"name": name}
        if kind == "methods":
            row |= {
                "title": thing.title or name,
                "parameters per layer": thing.formula,
                "in all": thing.traits.in_all,
                "paper": thing.paper,
            }
        elif kind == "tasks":
            row |= {
                "title": thing.title or name,
                "metric": thing.main_metric,
                "scales": ", ".join(thing.recipes),
                "paper": thing.paper,
            }
        else:
            row |= {"path": str(thing)}
        rows.append({**row, "distribution": origin.distribution, "version": origin.version, "file": origin.file})
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    short = [
        {
            k: _shorten(v) if k in ("file", "path") else ("yes" if v is True else "no" if v is False else v)
            for k, v in row.items()
        }
        for row in rows
    ]
    click.echo(tabulate(short, headers="keys", disable_numparse=True) if rows else f"no {kind}")


def _shorten(path: str) -> str:
    """Return the last three parts of a path."""
    return str(Path(*Path(path).parts[-3:]))


@app.command()
@click.argument("name")
@click.pass_obj
def describe(block: tuple[str, ...], name: str) -> None:
    """Describe a method or a task: settings with meaning and range, formula, citation."""
    from harness.registry import build_registry, unknown_name

    registry = build_registry(block)
    if name in registry.methods:
        click.echo(describe_method(registry, name))
    elif name in registry.tasks:
        click.echo(describe_task(registry, name))
    else:
        raise unknown_name("method or task", name, [*registry.methods, *registry.tasks])


def describe_method(registry: Registry, name: str) -> str:
    """Return a method's description as text."""
    from dataclasses import fields

    from tabulate import tabulate

    from harness.method import describe_range

    method = registry.method(name)
    origin = registry.origins["method", name]
    knob = method.traits.budget_knob
    lines = [f"{method.title or name} ({name})", (method.__doc__ or "").strip(), ""]
    lines += [
        f"citation    {method.citation}",
        f"paper       {method.paper}",
        f"parameters  {method.formula} per layer",
    ]
    lines += [
        f"budget      solved by {knob}"
        if knob
        else "budget      none: outside every budget"
        if method.traits.reference
        else "budget      fixed size"
    ]
    lines += [
        f"lr factor   {method.traits.learning_rate_factor:g} x LoRA's on the same task",
        f"from        {origin.pin}, {origin.file}",
        "",
    ]
    rows = [
        [each.name, getattr(method.Config(), each.name), describe_range(each), each.metadata.get("help", "")]
        for each in fields(method.Config)
    ]
    lines.append(
        tabulate(
            rows, ["setting", "default", "allowed", "meaning"], maxcolwidths=[None, None, 30, 70], disable_numparse=True
        )
        if rows
        else "no settings"
    )
    return "\n".join(lines)


def describe_task(registry: Registry, name: str) -> str:
    """Return a task's description as text."""
    from dataclasses import fields

    from tabulate import tabulate

    task = registry.task(name)
    origin = registry.origins["task", name]
    source = task.source
    data = f"{source.hub_id} {source.config} @ {source.revision}" if source.hub_id else "generated"
    lines = [
        f"{task.title or name} ({name})",
        (task.__doc__ or "").strip(),
        "",
        f"paper    {task.paper}",
        f"data     {data}",
    ]
    lines += [
        f"licence  {source.licence}",
        f"note     {source.note}",
        f"model    {task.model}",
        f"from     {origin.pin}, {origin.file}",
        "",
    ]
    rows = [
        [key + (" *" if key == task.main_metric else ""), m.unit, "higher" if m.higher_is_better else "lower", m.help]
        for key, m in task.metrics.items()
    ]
    lines += [tabulate(rows, ["metric", "unit", "better", "meaning"], maxcolwidths=[None, None, None, 70]), ""]
    names = [each.name for each in fields(next(iter(task.recipes.values())))]
    table = [[each, *(getattr(recipe, each) for recipe in task.recipes.values())] for each in names]
    lines.append(tabulate(table, ["recipe", *task.recipes], disable_numparse=True))
    return "\n".join(lines)


@app.command()
@click.argument("name")
@click.pass_obj
def check(block: tuple[str, ...], name: str) -> int:
    """Hold a method to the contract: run the conformance kit on it."""
    from harness.registry import build_registry
    from harness.testing import CheckFailed, CheckResult, check_method

    method = build_registry(block).method(name)

    def show(result: CheckResult) -> None:
        click.echo(f"{result.state:14}  {result.check}" + (f"\n{' ' * 16}{result.reason}" if result.reason else ""))

    try:
        check_method(method, on_result=show)
    except CheckFailed:
        click.echo(f"{name}: does not keep the contract", err=True)
        return 1
    click.echo(f"{name}: all checks passed")
    return 0


# --- results ----------------------------------------------------------------------------------------------------------

results_option = click.option(
    "--results", default="results", show_default=True, envvar="HARNESS_RESULTS", metavar="URL", help="Result root."
)


@app.group()
def results() -> None:
    """List, show and export records."""


def _records(root: str) -> tuple[Store, list[Record]]:
    from harness.store import Store

    store = Store(root)
    records = list(store.records())
    if not records:
        raise UsageError(
            f"no records in {root!r}; run something first (`harness run --methods all --task uuid`), or give --results"
        )
    return store, records


def _record(root: str, start: str) -> tuple[Store, Record]:
    """Return the one record whose id begins so."""
    store, records = _records(root)
    found = [record for record in records if record.trial_id.startswith(start)]
    if len(found) != 1:
        raise UsageError(f"{len(found)} records in {root!r} begin with {start!r}; `harness results list` shows the ids")
    return store, found[0]


@results.command("list")
@results_option
def results_list(results: str) -> None:
    """Show one line per record."""
    from harness.results import render_list

    click.echo(render_list(_records(results)[1]))


@results.command("show")
@click.argument("trial_id")
@results_option
def results_show(trial_id: str, results: str) -> None:
    """Show one record; the first characters of the id are enough."""
    from harness.results import render_show

    click.echo(render_show(_record(results, trial_id)[1]))


@results.command("export")
@click.argument("path", type=click.Path(path_type=Path))
@results_option
def results_export(path: Path, results: str) -> None:
    """Write all records as a table: .csv, .parquet or .json."""
    from harness.results import export

    records = _records(results)[1]
    export(records, path)
    click.echo(f"{len(records)} records -> {path}", err=True)


@app.command()
@click.argument("trial_id")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to write; new or empty.")
@click.option(
    "--format", "form", type=click.Choice(["merged", "peft"]), default="merged", show_default=True,
    help="The whole fine-tuned model, or the update as a LoRA checkpoint of PEFT.",
)  # fmt: skip
@click.option("--rank", type=click.IntRange(min=1), help="Cut the update to this rank (--format peft).")
@results_option
@click.pass_obj
def export(block: tuple[str, ...], /, trial_id: str, output: Path, form: str, rank: int | None, results: str) -> None:
    """Write a finished trial as a model that other programs load."""
    from transformers.utils.logging import disable_progress_bar

    from harness.export import TrainedTrial, export_merged, export_peft
    from harness.registry import build_registry

    if rank is not None and form != "peft":
        raise UsageError(f"--rank {rank} cuts the update of --format peft; --format {form} keeps all of it")
    disable_progress_bar()  # type: ignore[no-untyped-call]
    registry = build_registry(block)
    trained = TrainedTrial(registry, *_record(results, trial_id))
    if form == "merged":
        export_merged(trained, output)
    else:
        click.echo(export_peft(trained, output, rank))
    click.echo(f"trial {trained.trial.id} ({trained.trial.label}) -> {output}", err=True)


@app.group()
def track() -> None:
    """Tracking: views of the records elsewhere."""


@track.command("rebuild")
@results_option
@click.pass_obj
def track_rebuild(block: tuple[str, ...], results: str) -> int:
    """Tell the trackers about every record again. What they know already stays as it is."""
    from harness.registry import build_registry
    from harness.schedule import Observers

    registry = build_registry(block)
    store, records = _records(results)
    observers = Observers(registry)
    for record in records:
        environment = {**record.environment, "results_root": store.root}
        observers.call("harness_trial_started", trial=record.trial, environment=environment)
        observers.call("harness_trial_finished", trial=record.trial, record=record)
    observers.call("harness_sweep_finished")
    click.echo(f"{len(records)} records told to the trackers", err=True)
    return TRACKING_INCOMPLETE if observers.failures else 0


# --- data -------------------------------------------------------------------------------------------------------------


@app.group()
def data() -> None:
    """Data of the tasks."""


@data.command("check")
@click.option("--tasks", "--task", metavar="NAMES", help="Comma-separated task names.  [default: all]")
@click.option("--scale", default="smoke", show_default=True, help="Whose recipe's tables: smoke, small or paper.")
@click.option(
    "--data-dir", type=click.Path(path_type=Path, exists=True, file_okay=False), envvar="HARNESS_DATA_DIR",
    help="Folder of local tables.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def data_check(block: tuple[str, ...], tasks: str | None, scale: str, data_dir: Path | None, as_json: bool) -> int:
    """Say which tables the tasks read, which are there, and what to do about the others. Downloads nothing."""
    from harness.data_check import check_data, findings_json, findings_table
    from harness.plan import split_names
    from harness.registry import build_registry

    registry = build_registry(block)
    names = expand_tasks(split_names(tasks), registry) if tasks else list(registry.tasks)
    findings = check_data({name: registry.task(name) for name in names}, scale, data_dir)
    click.echo(json.dumps(findings_json(findings), indent=1) if as_json else findings_table(findings))
    return 1 if any(each.blocks for each in findings) else 0


# --- base models ------------------------------------------------------------------------------------------------------


@app.group()
def base() -> None:
    """Shipped base models."""


@base.command("list")
def base_list() -> None:
    """List the shipped base models."""
    from harness.bases import shipped_bases

    for name, path in shipped_bases().items():
        click.echo(f"{name}  {path}")


@base.command("build")
@click.argument("name")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write.  [default: ./NAME]")
@click.option("--steps", type=int, help="Fewer steps than the recipe's, to try it out.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
def base_build(name: str, output: Path | None, steps: int | None, device: str) -> None:
    """Train a shipped base model again from text that every machine has, and compare it with the shipped one."""
    from harness.bases import shipped_bases
    from harness.registry import unknown_name

    if name not in shipped_bases():
        raise unknown_name("shipped base model", name, shipped_bases())
    build = import_module(f"harness.bases.{name}").build
    report = build(
        name, output or Path(name), device=None if device == "auto" else device, steps=steps, report=click.echo
    )
    click.echo(str(report))


if __name__ == "__main__":
    main()
