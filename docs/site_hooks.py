"""Pages of the site that are made, not written: the tutorial, the catalogue of methods, the command line, Python names.

MkDocs calls these functions while it builds. What they show is what is installed.
"""

from __future__ import annotations

from typing import Any

import click
from mkdocs.structure.files import File, Files

LEADERBOARD = "results"  # its folder in the site


def on_files(files: Files, config: Any) -> Files:
    """Add the made pages."""
    made = {
        "tutorial.md": tutorial(), "catalogue.md": catalogue(), "cli.md": command_line(), "reference.md": reference()
    }  # fmt: skip
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def tutorial() -> str:
    """Return the notebook as a page."""
    import json
    from pathlib import Path

    parts = []
    for cell in json.loads((Path(__file__).parent / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    return "\n\n".join(parts) + "\n"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links to files of the repository into their names, and lead from the report to its leaderboard."""
    import re

    if page.file.src_path == "first-results.md":
        link = f'<a href="{LEADERBOARD}/index.html">The leaderboard of these results</a>'
        markdown = markdown.replace("\n\n", f"\n\n{link}\n\n", 1)
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"\1", markdown)


def on_post_build(config: Any) -> None:
    """Put the leaderboard of the published results beside the pages."""
    from pathlib import Path

    from harness_leaderboard.command import view_of
    from harness_leaderboard.load import load
    from harness_leaderboard.write.html import write_site

    results = Path(__file__).parents[1] / "benchmarks" / "results"
    write_site(view_of(load([str(results)]), None), Path(config.site_dir) / LEADERBOARD)


def catalogue() -> str:
    """Return every method: formula, paper, count, start, merge rule, status, settings."""
    from dataclasses import fields

    from harness.planning.registry import build_registry

    parts = ["# Methods that are built in", ""]
    for name, method in build_registry().methods.items():
        parts += [f"## {method.title or name} (`{name}`)", "", *definition(method), ""]
        parts += ["| fact | value |", "|---|---|"]
        parts += [f"| {key} | {text.replace('|', '/')} |" for key, text in facts(method).items()]
        parts.append("")
        rows = [
            (each.name, getattr(method.Config(), each.name), each.metadata.get("help", ""))
            for each in fields(method.Config)
        ]
        if rows:
            parts += ["| setting | default | meaning |", "|---|---|---|"]
            parts += [f"| `{key}` | `{default}` | {str(text).replace('|', '/')} |" for key, default, text in rows]
            parts.append("")
    return "\n".join(parts)


def definition(method: Any) -> list[str]:
    """Return what the method's module says of it: what it computes, from what it starts, where that is from."""
    import inspect

    text = inspect.cleandoc(inspect.getmodule(method).__doc__ or method.__doc__ or "")  # type: ignore[union-attr]
    lines = text.replace("``", "`").splitlines()
    lines[0] = f"**{lines[0]}**"
    return lines


def facts(method: Any) -> dict[str, str]:
    """Return what can be read off a method: its count, its start, how it is merged, where it stands."""
    from dataclasses import replace

    import torch

    from harness.contract.method import Method, attaches

    traits = method.traits
    found = {"paper": f"<{method.paper}>", "trained parameters of a layer": f"`{method.formula or 'all of them'}`"}
    if method.final_parameters is not Method.final_parameters:
        found["budget"] = "matched to the parameters that are left at the end"
    if traits.budget_knob and not traits.reference:
        found["set by the budget"] = f"`{traits.budget_knob}`"
    found["at the start"] = "the pretrained model" if traits.identity_at_init else "another function than the model's"
    if attaches(method):
        found["merging"] = "of whole weights, where it trains those"
    elif traits.mergeable:
        config = replace(method.Config(), **traits.check_config)
        layer = torch.nn.Linear(64, 64, bias=False).requires_grad_(False)
        adapter = method(config).adapter(layer, torch.Generator().manual_seed(0))
        rule = (type(adapter).delta_weight.__doc__ or "").strip().splitlines()[0]
        change = rule.removeprefix("Return ").partition(", shape")[0].rstrip(".").replace("``", "`")
        found["merging"] = f"W becomes W + delta, delta: {change}"
        found["export to PEFT"] = (
            "as PEFT has it" if adapter.peft_form() is not None else "as a LoRA of the rank that the change has"
        )
    else:
        found["merging"] = "none"
    if traits.reference:
        found["status"] = "reference, outside of every budget; trains alone"
    else:
        where = "in `--methods all`" if traits.in_all else "asked for by name, or in `--methods everything`"
        found["status"] = f"{where}; {'trains alone' if attaches(method) else 'packs with others'}"
    return found


def command_line() -> str:
    """Return the help of every command."""
    from harness.cli import app

    parts = ["# Command line", ""]

    def add(command: click.Command, name: str, parent: click.Context | None) -> None:
        context = click.Context(command, info_name=name.rsplit(" ", 1)[-1], parent=parent, max_content_width=100)
        parts.extend([f"## `{name}`", "", "```text", command.get_help(context), "```", ""])
        if isinstance(command, click.Group):
            for each in command.list_commands(context):
                found = command.get_command(context, each)
                if found is not None:
                    add(found, f"{name} {each}", context)

    add(app, "harness", None)
    return "\n".join(parts)


def reference() -> str:
    """Return the public names, grouped as a reader looks for them."""
    import harness

    names = [name for name in harness.__all__ if not name.startswith("_") and name != "IGNORE"]
    homes = harness._HOMES
    return "\n\n".join(["# Python", *(f"::: {homes[name]}.{name}" for name in names)]) + "\n"
