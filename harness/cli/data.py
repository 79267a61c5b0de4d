"""``harness data``: are the tables that tasks read there, and what is understood of a user's own?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.options import data_dir_option
from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.data.own.locate import OwnData
    from harness.planning.registry import Registry


@click.group()
def data() -> None:
    """Data of the tasks, and your own."""


@data.command("check")
@click.option("--tasks", "--task", metavar="NAMES", help="Comma-separated task names.  [default: all]")
@click.option("--scale", default="smoke", show_default=True, help="Whose recipe's tables: smoke, small or paper.")
@data_dir_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def data_check(block: tuple[str, ...], tasks: str | None, scale: str, data_dir: Path | None, as_json: bool) -> int:
    """Say which tables the tasks read, which are there, and what to do about the others. Downloads nothing."""
    from harness.data.check import check_data, findings_json, findings_table
    from harness.planning.choices import split_names
    from harness.planning.registry import build_registry
    from harness.planning.request import expand_tasks

    registry = build_registry(block)
    names = expand_tasks(split_names(tasks), registry) if tasks else list(registry.tasks)
    kinds = {name: registry.task(name) for name in names}
    if scale not in (known := sorted({each for kind in kinds.values() for each in kind.recipes})):
        raise UsageError(f"--scale {scale!r}: none of these tasks has it; give {', '.join(known)}")
    findings = check_data(kinds, scale, data_dir)
    click.echo(json.dumps(findings_json(findings), indent=1) if as_json else findings_table(findings))
    return 1 if any(each.blocks for each in findings) else 0


@data.command("show")
@click.argument("where", metavar="FILE|FOLDER|HUB-ID")
@click.option("--columns", default="", metavar="ROLE=COLUMN,...", help="What its columns are.  [default: by name]")
@click.option("--data-kind", default="", metavar="KIND", help="instructions, classification or text.")
@click.option("--labels", default="", metavar="LIST", help="All labels, in order.  [default: those in the data]")
@click.option("--model", default="", metavar="NAME", help="Whose tokens to count and show.  [default: nano]")
@click.option("--scale", default="smoke", show_default=True, help="Whose recipe's longest length.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def data_show(
    block: tuple[str, ...], where: str, columns: str, data_kind: str, labels: str, model: str, scale: str, as_json: bool
) -> int:
    """Say what `harness run --data` would understand of your data: columns, splits, labels, lengths, examples."""
    from harness.data.own.describe import as_text, describe
    from harness.data.own.locate import understand
    from harness.data.own.splits import read_own
    from harness.errors import ConfigError, DataError
    from harness.planning.registry import build_registry

    registry = build_registry(block)
    own = understand(where, columns, data_kind, labels)
    found = describe(own, read_own(own.recipe(), own.kind, own.data_dir))
    refused: ConfigError | DataError | None = None
    try:
        found |= _as_the_model_reads(registry, own, model, scale)
    except (ConfigError, DataError) as error:  # what was understood is worth seeing even so
        refused = error
    click.echo(json.dumps(found, indent=1, ensure_ascii=False) if as_json else as_text(found))
    if refused is not None:
        raise refused
    return 0


def _as_the_model_reads(registry: Registry, own: OwnData, model: str, scale: str) -> dict[str, Any]:
    """Return how long a user's rows are to a model, and three of them as it reads them."""
    from harness.contract.task import TaskContext
    from harness.data.own.describe import lengths, rendered
    from harness.engine.model import build_on_meta, choose_model, load_tokenizer
    from harness.planning.fitness import check_fitness
    from harness.planning.own_data import task_name
    from harness.planning.plan import resolve_recipe
    from harness.planning.suite import Suite

    name, _ = task_name(registry, own)
    task = registry.task(name)()
    recipe = resolve_recipe(task, Suite(tasks=(name,), scale=scale, recipe=own.fields))
    choice = choose_model(model or task.model, None, task, recipe)
    tokenizer = load_tokenizer(choice, task, recipe)
    skeleton = build_on_meta(choice, task, recipe)
    check_fitness(choice, task, recipe, skeleton)
    context = TaskContext(tokenizer=tokenizer, recipe=recipe, seed=0, data_dir=own.data_dir, base_model=skeleton)
    task.check(context)
    train: Any = task.load(context).train
    examples = [train[place] for place in range(len(train))]
    return {
        "model": choice.name,
        "tokens": lengths(examples),
        "examples": [rendered(each, tokenizer, recipe.labels) for each in examples[:3]],
    }
