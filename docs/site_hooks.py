"""Pages of the site that are made, not written: the catalogue of methods, the command line, the Python names.

MkDocs calls these functions while it builds. What they show is what is installed.
"""

from __future__ import annotations

from typing import Any

import click
from mkdocs.structure.files import File, Files

REPOSITORY = "../"  # links that leave docs/ lead to the repository, which a site has not


def on_files(files: Files, config: Any) -> Files:
    """Add the made pages."""
    for name, content in (("catalogue.md", catalogue()), ("cli.md", command_line()), ("reference.md", reference())):
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links to files of the repository into their names."""
    import re

    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"\1", markdown)


def catalogue() -> str:
    """Return every method: formula, paper, settings."""
    from dataclasses import fields

    from harness.planning.registry import build_registry

    parts = ["# Methods that are built in", ""]
    for name, method in build_registry().methods.items():
        parts += [
            f"## {method.title or name} (`{name}`)",
            "",
            (method.__doc__ or "").strip().splitlines()[0],
            "",
            f"* parameters per layer: `{method.formula}`",
            f"* paper: <{method.paper}>",
            "",
        ]
        rows = [
            (each.name, getattr(method.Config(), each.name), each.metadata.get("help", ""))
            for each in fields(method.Config)
        ]
        if rows:
            parts += ["| setting | default | meaning |", "|---|---|---|"]
            parts += [f"| `{key}` | `{default}` | {str(text).replace('|', '/')} |" for key, default, text in rows]
            parts.append("")
    return "\n".join(parts)


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
