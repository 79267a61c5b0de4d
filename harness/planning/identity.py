"""What a plug-in is, for the id of a trial: another version, or other source, is another method or task.

A plug-in from a built distribution is its distribution and version. Of an editable install or plain files a version
says nothing, so there it is also the content of its source: its own file, and whatever it imports that comes from no
built distribution either. So is one that was edited in place. The engine itself is named by its version alone.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import Distribution
from pathlib import Path

INSTALLED = {"site-packages", "dist-packages"}
ENGINE = "harness"


def identify(distribution: Distribution | None, module: str) -> str:
    """Return ``distribution==version``, followed by a hash where that does not say what the source is.

    Args:
        distribution: Which brought the plug-in; ``None`` if nothing says.
        module: Name of the plug-in's module.
    """
    name, version = (distribution.name, distribution.version) if distribution else ("unknown", "0")
    files = sorted(sources(module).items())
    contents = [file.read_bytes() for _, file in files]
    recorded = _recorded(distribution) if distribution else {}
    written = [recorded.get(file.resolve()) for _, file in files]
    if written and written == [_hash(content) for content in contents]:
        return f"{name}=={version}"
    total = hashlib.sha256()
    for (place, _), content in zip(files, contents, strict=True):
        total.update(f"{place}\0".encode() + hashlib.sha256(content).digest())
    return f"{name}=={version}+sha256.{total.hexdigest()[:16]}"


def sources(module: str) -> Mapping[str, Path]:
    """Return the files that make a plug-in, by their place in its package; without importing anything.

    Its module; where that is a package, every file in its folder; and what these import, at any place in them, from
    the same package or from others that were not installed.
    """
    top = module.partition(".")[0]
    found: dict[str, Path] = {}
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen or not _is_own(name.partition(".")[0], top):
            continue
        seen.add(name)
        spec = _find(name)
        if spec is None:
            continue
        waiting.append(name.rpartition(".")[0] or name)
        if spec.origin and Path(spec.origin).is_file():
            file = Path(spec.origin)
            found[f"{name}/{file.name}"] = file
            if file.suffix == ".py":
                waiting.extend(_imports(file.read_bytes(), name, spec.submodule_search_locations is not None))
        if name == module:
            for folder in spec.submodule_search_locations or ():
                for file in Path(folder).rglob("*"):
                    if file.is_file() and "__pycache__" not in file.parts:
                        found[f"{name}/{file.relative_to(folder).as_posix()}"] = file
    return found


def _imports(source: bytes, module: str, is_package: bool) -> Iterator[str]:
    """Yield the modules that a source file imports, and perhaps names of what it takes from them."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


@cache
def _is_own(top: str, plugin: str) -> bool:
    """Return whether a top-level package belongs to what a plug-in's author edits."""
    if top == plugin:
        return True
    if not top or top == ENGINE or top in sys.stdlib_module_names:
        return False
    spec = _find(top)
    if spec is None:
        return False
    folders = [Path(place).parent for place in spec.submodule_search_locations or ()]
    if not folders and spec.origin:
        folders = [Path(spec.origin).parent]
    return bool(folders) and not any(_is_installed(top, plugin, folder) for folder in folders)


@cache
def _is_installed(top: str, plugin: str, folder: Path) -> bool:
    """Return whether another distribution than the plug-in's brought a package to a folder, whatever that is called."""
    if INSTALLED & set(folder.parts):
        return True

    def holds(lines: list[str], name: str) -> bool:
        return any(line.startswith((f"{name}/", f"{name}.py,")) for line in lines)

    records = [path.read_text(encoding="utf-8").splitlines() for path in folder.glob("*.dist-info/RECORD")]
    return any(holds(lines, top) and not holds(lines, plugin) for lines in records)


def _find(name: str) -> ModuleSpec | None:
    """Return where a module is, without importing it or its packages; ``None`` if there is none."""
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(f"{spec.name}.{part}", list(spec.submodule_search_locations))
    return spec


def _recorded(distribution: Distribution) -> Mapping[Path, str]:
    """Return the hash of each file that a built distribution installed, as it wrote down."""
    return {
        Path(str(each.locate())).resolve(): each.hash.value
        for each in distribution.files or ()
        if each.hash is not None and each.hash.mode == "sha256"
    }


def _hash(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
