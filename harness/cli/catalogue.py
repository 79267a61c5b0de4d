"""``harness list`` and ``harness describe``: which methods, tasks and suites there are, and what each is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from harness.planning.registry import Registry


@click.command("list")
@click.argument("kind", type=click.Choice(["methods", "tasks", "suites", "analyses", "executors"]))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def list_(block: tuple[str, ...], kind: str, as_json: bool) -> None:
    """List methods, tasks, suites, analyses or executors, and where each comes from."""
    from tabulate import tabulate

    from harness.planning.registry import build_registry

    registry = build_registry(block)
    rows: list[dict[str, Any]] = []
    for name, thing in getattr(registry, "every_method" if kind == "methods" else kind).items():
        origin = registry.origins["analysis" if kind == "analyses" else kind[:-1], name]
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
        elif kind == "analyses":
            row |= {
                "title": thing.title or name,
                "of": "trials" if thing.of_updates else "base models",
                "paper": thing.paper,
            }
        elif kind == "executors":
            row |= {"title": thing.title or name, "settings": ", ".join(thing.Config.__dataclass_fields__)}
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


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def describe(block: tuple[str, ...], name: str, as_json: bool) -> None:
    """Describe a method or a task: settings with meaning and range, formula, citation. Of a family, list its tasks."""
    from harness.planning.registry import build_registry, unknown_name
    from harness.planning.request import family

    registry = build_registry(block)
    is_method = name in registry.every_method
    if as_json and (is_method or name in registry.tasks):
        from harness.results import catalogue

        found = (
            catalogue.describe_method(registry.method(name))
            if is_method
            else catalogue.describe_task(registry.task(name))
        )
        click.echo(json.dumps(found, indent=1))
    elif as_json and (members := family(name, registry)):
        click.echo(json.dumps(members, indent=1))
    elif is_method:
        click.echo(describe_method(registry, name))
    elif name in registry.tasks:
        click.echo(describe_task(registry, name))
    elif members := family(name, registry):
        click.echo(describe_family(registry, name, members))
    else:
        raise unknown_name("method or task", name, [*registry.every_method, *registry.tasks])


def describe_method(registry: Registry, name: str) -> str:
    """Return a method's description as text."""
    from dataclasses import fields

    from tabulate import tabulate

    from harness.contract.setting import describe_range

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
        f"from        {origin.identity}, {origin.file}",
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
    lines = [
        f"{task.title or name} ({name})",
        (task.__doc__ or "").strip(),
        "",
        f"paper    {task.paper}",
        f"note     {task.source.note}",
        f"model    {task.model}",
        f"from     {origin.identity}, {origin.file}",
        "",
    ]
    tables = [table for recipe in task.recipes.values() for table in task().tables(recipe)]
    sources = [
        [f"{each.hub_id} {each.config}" if each.hub_id else "local only", each.revision, each.licence, each.folder]
        for each in dict.fromkeys(table.source for table in tables)
    ]
    if task.source.is_generated or not sources:
        sources.insert(0, ["generated", "", "", ""])
    head = ["data", "revision", "licence", "below --data-dir"]
    lines += [tabulate(sources, head, maxcolwidths=[None, None, 40, None], disable_numparse=True), ""]
    rows = [
        [key + (" *" if key == task.main_metric else ""), m.unit, "higher" if m.higher_is_better else "lower", m.help]
        for key, m in task.metrics.items()
    ]
    lines += [tabulate(rows, ["metric", "unit", "better", "meaning"], maxcolwidths=[None, None, None, 70]), ""]
    names = [each.name for each in fields(next(iter(task.recipes.values())))]
    table = [[each, *(getattr(recipe, each) for recipe in task.recipes.values())] for each in names]
    lines.append(tabulate(table, ["recipe", *task.recipes], disable_numparse=True))
    return "\n".join(lines)


def describe_family(registry: Registry, name: str, members: Sequence[str]) -> str:
    """Return the tasks of a family as text, and how to ask for them."""
    from tabulate import tabulate

    tasks = [registry.task(each) for each in members]
    rows = [[each.name, each.title or each.name, each.main_metric, ", ".join(each.recipes)] for each in tasks]
    return (
        f"{name} is a family of tasks: --task {name} takes them all, --task {members[0]} takes one.\n\n"
        f"{tabulate(rows, ['task', 'title', 'metric', 'scales'])}\n\n"
        f"`harness describe {members[0]}` says more about one."
    )
