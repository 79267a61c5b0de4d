"""``harness new``: an installable package with a working method or task and its tests, to be changed into one's own."""

from __future__ import annotations

import json
import keyword
import re
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from string import Template

import click

from harness.errors import UsageError, writing

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@click.command()
@click.argument("kind", type=click.Choice(["method", "task"]))
@click.argument("name")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder to write; new or empty.  [default: harness-NAME]"
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def new(block: tuple[str, ...], kind: str, name: str, output: Path | None, as_json: bool) -> None:
    """Write an installable package with a method or a task that works, and its tests."""
    folder = output or Path(f"harness-{name}")
    files = package(kind, name)
    _check_free(kind, name, block)
    for path, content in files.items():
        _write(folder, path, content)
    check = f"harness check {name}" if kind == "method" else f"harness describe {name}"
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "files": sorted(files), "check": check}, indent=1))
        return
    click.echo(f"{folder}: now run\n\n    cd {folder}\n    pip install -e .[test]\n    pytest\n")
    click.echo(f"then change it into your own, and `{check}`.")


def package(kind: str, name: str) -> dict[str, str]:
    """Return the files of a package.

    Args:
        kind: ``method`` or ``task``.
        name: Of lower-case words, joined by hyphens.

    Raises:
        UsageError: The name cannot be one of a method, a module and a class.
    """
    if not NAME.fullmatch(name) or keyword.iskeyword(name):
        raise UsageError(f"{name!r} is no name for a {kind}; give lower-case words joined by hyphens, e.g. my-{kind}")
    module = f"harness_{name.replace('-', '_')}"
    words = {
        "slug": name, "kind": kind, "module": module, "class_name": "".join(map(str.capitalize, name.split("-"))),
    }  # fmt: skip
    templates = resources.files("harness.cli") / "templates"
    files = {
        "pyproject.toml": templates / "pyproject.toml.txt",
        "README.md": templates / kind / "README.md.txt",
        f"{module}.py": templates / kind / "module.py.txt",
        f"test_{name.replace('-', '_')}.py": templates / kind / "test.py.txt",
    }
    return {path: Template(file.read_text(encoding="utf-8")).substitute(words) for path, file in files.items()}


def _check_free(kind: str, name: str, block: tuple[str, ...]) -> None:
    """Refuse a name that a plug-in has, or whose module would stand in front of another.

    Raises:
        UsageError: Says who has it.
    """
    from harness.planning.registry import RESERVED, build_registry

    registry = build_registry(block)
    if name in RESERVED:
        raise UsageError(f"{name!r} stands for several methods; give another name")
    if (kind, name) in registry.origins:
        origin = registry.origins[kind, name]
        raise UsageError(
            f"there is a {kind} {name!r} already: plug-in {origin.plugin!r} of {origin.pin} ({origin.file}); give "
            "another name"
        )
    groups = registry.families if kind == "method" else registry.data_tasks
    if name in groups:
        raise UsageError(f"{name!r} is what names of {kind}s like '{name}{':' if kind == 'method' else '/'}one' begin "
                         "with; give another name")  # fmt: skip
    module = f"harness_{name.replace('-', '_')}"
    found = find_spec(module)
    if found is not None:
        raise UsageError(f"there is a module {module!r} already ({found.origin}); give another name")


def _write(folder: Path, path: str, content: str) -> None:
    target = folder / path
    if target.exists():
        raise UsageError(f"{str(target)!r} is there already; give a new folder with -o")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8")
