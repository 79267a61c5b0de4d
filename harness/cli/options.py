"""What the user asks for: the options that commands share, and the suite and the devices they stand for.

Whether a method, a task or a recipe's field exists and may have such a value, the registry and the suite say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.planning.registry import Registry
    from harness.planning.suite import Suite

PLAIN = (  # options that are fields of a suite as they stand
    "scale", "model", "revision", "tolerance", "tune", "tune_seeds", "halving", "until_separated", "max_seeds",
    "precision",
)  # fmt: skip

OPTIONS = {  # what messages call the fields of a suite here
    **{name: f"--{name.replace('_', '-')}" for name in (*PLAIN, "methods", "tasks", "seeds", "learning_rates")},
    "targets": "--targets", "budgets": "--budget", "quantize": "--quantize",
}  # fmt: skip


class Filled(click.Option):
    """An option whose value, if it is given, is not empty: that of a variable which is not set would mean the default.

    This is not so of lists of what to leave out.
    """

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        """Return the value, converted and checked."""
        is_typed = ctx.get_parameter_source(self.name or "") is click.core.ParameterSource.COMMANDLINE
        for each in value if isinstance(value, list | tuple) else (value,):
            if is_typed and isinstance(each, str) and not each.strip(", "):
                raise UsageError(f"{self.opts[0]} {each!r} is empty; give a value, or leave it out")
        return super().process_value(ctx, value)


data_dir_option = click.option(
    "--data-dir", type=click.Path(path_type=Path, exists=True, file_okay=False), envvar="HARNESS_DATA_DIR",
    help="Folder of local tables.",
)  # fmt: skip

shard_option = click.option(
    "--shard", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
    help="Divide a model that one GPU cannot hold over N of them.",
)  # fmt: skip


def suite_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what to run."""
    option = partial(click.option, cls=Filled)
    options = [
        option("--suite", "suite_name", metavar="NAME", help="A registered suite or .toml file, to be overridden."),
        option("--methods", "--method", metavar="NAMES",
               help="Comma-separated: all, everything, lora, mora:operator=rotation."),
        click.option("--exclude", default="", metavar="NAMES", help="Methods to leave out."),
        option("--tasks", "--task", metavar="NAMES",
               help="Comma-separated: uuid, glue/rte, or a family of tasks like glue."),
        option("--data", metavar="FILE|FOLDER|HUB-ID",
               help="Your own data instead of a task: instructions, texts with labels, or plain text."),
        option("--columns", default="", metavar="ROLE=COLUMN,...",
               help="What its columns are, e.g. prompt=question,response=answer.  [default: found by name]"),
        option("--data-kind", default="", metavar="KIND",
               help="What it is for: instructions, classification or text.  [default: found by its columns]"),
        option("--labels", default="", metavar="LIST", help="All labels, in order.  [default: those in the data]"),
        option("--metric", default="", metavar="NAME",
               help="What ranks: a metric of that kind of data, or a module of `evaluate` on written answers."),
        option("--lower-is-better", is_flag=True, help="Of that module's score."),
        option("--scale", metavar="NAME", help="Which recipe: smoke, small or paper.  [default: smoke]"),
        option("--model", metavar="NAME", help="A shipped base, hub id or local folder.  [default: the task's]"),
        option("--revision", metavar="COMMIT", help="Of a hub model."),
        option("--budget", "budgets", multiple=True, metavar="BUDGET",
               help="lora:r=8, 0.5% or 300k.  [default: lora:r=8]"),
        option("--tolerance", type=float, metavar="FRACTION",
               help="Largest deviation from the budget.  [default: 0.01]"),
        option("--seeds", metavar="N|LIST", help="A number of seeds, or a list like 0,1,2.  [default: 3]"),
        option("--learning-rates", "--lr", metavar="LIST",
               help="The same rates for every method, instead of the recipe's."),
        option("--tune", type=int, metavar="N", help="Search N learning rates per method on validation first."),
        option("--tune-seeds", type=int, metavar="N",
               help="... on N seeds; the best mean is chosen.  [default: 1]"),
        option("--halving", is_flag=True, default=None,
               help="... the worse half of the rates gets no more after 1, 2, 4, ... of them."),
        option("--until-separated", type=float, metavar="POINTS",
               help="Add seeds while methods that are not told apart may differ by so much."),
        option("--max-seeds", type=int, metavar="N", help="... up to so many.  [default: 10, or twice --seeds]"),
        option("--targets", metavar="PATTERNS",
               help="Layers to adapt, e.g. '*q_proj,*v_proj'.  [default: the task's]"),
        option("--precision", metavar="NAME", help="auto, float32 or bfloat16.  [default: auto]"),
        option("--quantize", metavar="NAME", help="nf4: keep the weights of the base's linear layers in 4 bits."),
        option("--double-quantize", is_flag=True, help="With --quantize: their scales in 8 bits."),
        option("--set", "settings", multiple=True, metavar="FIELD=VALUE",
               help="Override a field of the task's recipe."),
        option("--steps", type=click.IntRange(min=1), metavar="N", help="Short for --set steps=N."),
        data_dir_option,
        option("--results", default="results", show_default=True, envvar="HARNESS_RESULTS", metavar="URL",
               help="Result root: a folder or any fsspec URL."),
    ]  # fmt: skip
    for each in reversed(options):
        command = each(command)
    return command


def build_suite_from_options(registry: Registry, options: Mapping[str, Any]) -> tuple[Suite, Path | None]:
    """Return the suite that the command line asks for, and the folder of its local tables."""
    from harness.planning.choices import split_names
    from harness.planning.request import OwnRequest, build_request
    from harness.planning.suite import Words

    given: dict[str, Any] = {name: options[name] for name in PLAIN if options[name] is not None}
    if options["double_quantize"] and not options["quantize"]:
        raise UsageError("--double-quantize says how the scales of 4-bit weights are kept; give --quantize nf4 as well")
    if options["quantize"]:
        given["quantize"] = options["quantize"] + ("-double" if options["double_quantize"] else "")
    if options["methods"]:
        given["methods"] = split_names(options["methods"])
    if options["exclude"]:
        given["methods"] = [*given.get("methods", ()), *(f"-{name}" for name in split_names(options["exclude"]))]
    if options["tasks"]:
        given["tasks"] = split_names(options["tasks"])
    if options["budgets"]:
        given["budgets"] = list(options["budgets"])
    if options["seeds"]:
        given["seeds"] = parse_seeds(options["seeds"])
    if options["learning_rates"]:
        given["learning_rates"] = [parse_rate(each) for each in split_names(options["learning_rates"])]
    if options["targets"]:
        given["targets"] = split_names(options["targets"])
    recipe: dict[str, Any] = {}
    for each in options["settings"]:
        name, equals, value = each.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"--set {each!r}: write FIELD=VALUE, e.g. --set batch_size=8")
        if (name := name.strip()) in recipe:
            raise UsageError(f"--set {name}={recipe[name]} and --set {each} set one field twice; give one of them")
        recipe[name] = value
    if options["steps"] is not None:
        if "steps" in recipe:
            raise UsageError(
                f"--steps {options['steps']} and --set steps={recipe['steps']} set one field twice; give one of them"
            )
        recipe["steps"] = options["steps"]
    own = OwnRequest(
        where=options["data"] or "", columns=options["columns"], kind=options["data_kind"], labels=options["labels"],
        metric=options["metric"], lower_is_better=options["lower_is_better"],
    )  # fmt: skip
    data_dir = None if own.where and _is_of_environment("data_dir") else options["data_dir"]  # that is about tasks
    return build_request(registry, given, recipe, options["suite_name"] or "", data_dir, own, Words(OPTIONS))


def _is_of_environment(option: str) -> bool:
    """Return whether an option's value is that of its variable, and nobody typed it."""
    context = click.get_current_context(silent=True)
    return context is not None and context.get_parameter_source(option) is click.core.ParameterSource.ENVIRONMENT


MOST_SEEDS = 10_000  # as a number: more were mistyped, and would be listed before anything could refuse them


def parse_seeds(text: str) -> list[int]:
    """Return seeds: ``5`` is five of them, ``0,3`` or ``7,`` is a list."""
    try:
        if "," in text:
            return [int(each) for each in text.split(",") if each.strip()]
        number = int(text)
    except ValueError:
        raise UsageError(f"--seeds {text!r}: give a number of seeds (5) or a list (0,1,2)") from None
    if not 0 < number <= MOST_SEEDS:
        raise UsageError(f"--seeds {text!r}: give a number from 1 to {MOST_SEEDS}, or a list (0,1,2)")
    return list(range(number))


def parse_rate(text: str) -> float:
    """Return a learning rate, or raise a usage error naming it."""
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{OPTIONS['learning_rates']}: {text!r} is not a number") from None
