"""Who may import what: light commands load nothing heavy, the engine names no plugin, plugins use public names only."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import harness
from harness.planning.registry import build_registry

ROOT = Path(__file__).parent.parent
HEAVY = (
    "torch",
    "torch._dynamo",  # the compiler's two parts, longer to load than PyTorch itself
    "torch._inductor",
    "transformers",
    "datasets",
    "pandas",
    "pyarrow",
    "mlflow",
    "ray",
    "lm_eval",
    "peft",
    "matplotlib",
    "numpy",
)
SOURCE_ROOTS = (
    "harness",
    "plugins/harness_plugins",
    "benchmarks/harness_benchmarks",
    "leaderboard/harness_leaderboard",
)


def sources(*folders: str) -> list[Path]:
    """Return the Python files below some folders; none would make a guard pass for nothing."""
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found
    return found


def names_of(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def loaded_by(script: str, folder: Path) -> set[str]:
    """Return which heavy packages a fresh interpreter has loaded after a script."""
    ending = f"\nimport json, sys\nprint(json.dumps([m for m in {HEAVY!r} if m in sys.modules]), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script + ending], cwd=folder, capture_output=True, text=True, timeout=120, check=True
    )
    return set(json.loads(done.stderr.splitlines()[-1]))


def command(*arguments: str) -> str:
    return f"import sys; from harness.cli import app; app({list(arguments)!r}, standalone_mode=False)"


def test_the_measure_sees_what_a_script_loads(tmp_path):
    assert loaded_by("import numpy", tmp_path) == {"numpy"}


def test_import_harness_loads_nothing_heavy(tmp_path):
    assert loaded_by("import harness; dir(harness)", tmp_path) == set()


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["results", "--help"], ["base", "list"]])
def test_help_loads_nothing_heavy(arguments, tmp_path):
    assert loaded_by(command(*arguments), tmp_path) == set()


def test_listing_loads_the_plugins_and_so_torch_but_nothing_else(tmp_path):
    lists = "; ".join(command("list", kind) for kind in ("methods", "tasks", "suites"))
    assert loaded_by(lists, tmp_path) <= {"torch", "numpy"}


def test_the_leaderboard_needs_no_torch(tmp_path):
    root = ROOT / "leaderboard"
    paths = [path.relative_to(root).with_suffix("") for path in sources("leaderboard/harness_leaderboard")]
    modules = sorted(".".join(path.parts).removesuffix(".__init__") for path in paths)
    script = "import importlib\n" + "".join(f"importlib.import_module({module!r})\n" for module in modules)
    assert not loaded_by(script, tmp_path) & {"torch", "transformers", "datasets", "mlflow", "ray"}


def test_every_public_name_can_be_had_and_an_unknown_one_is_named():
    for name in harness.__all__:
        getattr(harness, name)
    with pytest.raises(AttributeError, match=r"no attribute 'Adaptor'.*Adapter"):
        _ = harness.Adaptor


@cache
def imports(path: Path) -> list[tuple[int, str, tuple[str, ...]]]:
    """Return every import of a file, wherever it stands: line, module, imported names."""
    found: list[tuple[int, str, tuple[str, ...]]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.lineno, node.module or "", tuple(alias.name for alias in node.names)))
    return found


@pytest.mark.parametrize("path", sources("harness"), ids=names_of(sources("harness")))
def test_the_engine_imports_no_plugin_package(path):
    ours = ("harness_plugins", "harness_benchmarks", "harness_leaderboard")
    assert [each for each in imports(path) if each[1].partition(".")[0] in ours] == []


ROOMS = (
    "cli",
    "running",
    "results",
    "planning",
    "testing",
    "engine",
    "bases",
    "data",
    "contract",
    "errors",
)  # downwards


DOORS = (ROOT / "harness/__init__.py", ROOT / "harness/__main__.py")  # of the house, in no room
IN_ROOMS = [path for path in sources("harness") if path not in DOORS]


@pytest.mark.parametrize("path", IN_ROOMS, ids=names_of(IN_ROOMS))
def test_rooms_import_only_what_stands_lower(path):
    room, *inside = path.relative_to(ROOT / "harness").with_suffix("").parts
    assert room in ROOMS, f"{path} is in no room; docs/architecture.md says what each is for"
    lower = {room, *ROOMS[ROOMS.index(room) + 1 :]} if inside else {room}
    upwards = [f"line {line}: {module}" for line, module in imported_modules(path) if module.split(".")[1] not in lower]
    assert upwards == []


def imported_modules(path: Path) -> list[tuple[int, str]]:
    """Return every import of our own modules, as ``harness.room.module``."""
    found = []
    for line, module, names in imports(path):
        if module == "harness":  # `from harness import room`, or a public name, which has a home of its own
            found += [(line, f"harness.{name}") for name in names if name in ROOMS]
        elif module.startswith("harness."):
            found.append((line, module))
    return found


def test_no_modules_import_each_other_in_a_circle():
    known = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in sources("harness")
    }
    graph = {}
    for path in sources("harness"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if name != "harness":
            targets = set()
            for _, module, names in imports(path):
                targets |= {module, *(f"{module}.{each}" for each in names)} & known
            graph[name] = targets - {name, "harness"}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


PLUGINS = sources("plugins/harness_plugins", "benchmarks/harness_benchmarks")


@pytest.mark.parametrize("path", PLUGINS, ids=names_of(PLUGINS))
def test_plugins_import_only_public_names(path):
    private = []
    for line, module, names in imports(path):
        if module.partition(".")[0] != "harness":
            continue
        if module != "harness" or not names or not set(names) <= set(harness.__all__):
            private.append(f"line {line}: {module} {names}")
    assert private == [], "plugins use what a stranger could use: names in harness.__all__"


# --- the engine says no method's and no task's name -------------------------------------------------------------------


def words(text: str) -> set[str]:
    """Return the lower-case words of an identifier or a string: ``is_adalora`` and ``isAdaLora`` both hold adalora."""
    return {each for each in re.split(r"[^a-z0-9]+", text.lower()) if each}


def named_in(source: str) -> dict[str, int]:
    """Return the words of all identifiers and of all strings that are not documentation, with their lines."""
    tree = ast.parse(source)
    documentation = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            documentation.add(id(node.value))
    found: dict[str, int] = {}
    for node in ast.walk(tree):
        texts: list[str] = []
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            # An example within a sentence for the user ("write lora:r=8") teaches; a bare name decides.
            texts = [node.value] if not re.search(r"\s|=|:", node.value) else []
        for field in ("id", "attr", "arg", "name"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                texts.append(value)
        for text in texts:
            for word in words(text) | {text.lower()}:
                found.setdefault(word, getattr(node, "lineno", 0))
    return found


@cache
def forbidden_names() -> set[str]:
    registry = build_registry()
    families = {name.partition("/")[0] for name in registry.tasks}
    return {*registry.methods, *registry.tasks, *families} - {
        "full",  # English words that are also methods or tasks: as identifiers they cannot be told apart
        "code",
        "frozen",
        "math",
        "prompt",
        "prefix",
    }


def test_the_guard_sees_a_name():
    assert "adalora" in named_in("def f(model):\n    return model.is_adalora\n")
    assert "lora" in named_in("if method == 'lora':\n    pass\n")
    assert "lora" not in named_in("def f():\n    'As in LoRA.'\n    raise ValueError('write lora:r=8, please')\n")


@pytest.mark.parametrize("path", sources("harness"), ids=names_of(sources("harness")))
def test_the_engine_names_no_method_and_no_task(path):
    if path.is_relative_to(ROOT / "harness" / "bases"):
        pytest.skip("a base model's recipe says what it was trained on")
    known = forbidden_names()
    assert {"lora", "uuid"} <= known, "no built-in is registered: install the project first (pip install -e .)"
    found = named_in(path.read_text(encoding="utf-8"))
    allowed = {module for _, module, _ in imports(path)}  # Python's own uuid module is not the task
    if path.name == "export.py":
        allowed.add("lora")  # the name of a checkpoint format that other libraries read, whatever the method was
    if path.name == "vllm.py":
        allowed |= {"lora", "dora", "rslora"}  # fields of that format, which vLLM's loader reads
    assert {name: line for name, line in found.items() if name in known - allowed} == {}
