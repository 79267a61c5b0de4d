"""Finding methods, tasks, suites and observers: one door for built-ins and strangers.

An entry point of group ``harness`` names a module or a package. A module is registered as a plugin. Of a package,
every submodule is registered as its own plugin, named ``<entry point>:<module>``, so that a new method is one new file.
"""

from __future__ import annotations

import difflib
import inspect
import os
import pkgutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from harness import hookspecs
from harness.errors import PluginLoadError, UsageError

if TYPE_CHECKING:
    from harness.method import Method
    from harness.task import Task

GROUP = "harness"


@dataclass(frozen=True)
class Origin:
    """Where a registered thing comes from."""

    plugin: str
    distribution: str
    version: str
    file: str

    @property
    def pin(self) -> str:
        """Return ``distribution==version``."""
        return f"{self.distribution}=={self.version}"


@dataclass(frozen=True)
class Registry:
    """Everything the plugins registered. Read-only."""

    hook: Any
    methods: Mapping[str, type[Method]]
    tasks: Mapping[str, type[Task]]
    suites: Mapping[str, Path]
    origins: Mapping[tuple[str, str], Origin]

    def method(self, name: str) -> type[Method]:
        """Return the method of this name; an unknown one raises ``UsageError`` with near misses."""
        return _look_up("method", name, self.methods)

    def task(self, name: str) -> type[Task]:
        """Return the task of this name; an unknown one raises ``UsageError`` with near misses."""
        return _look_up("task", name, self.tasks)

    def suite(self, name: str) -> Path:
        """Return the path of a registered suite, or of a ``.toml`` file given by path."""
        if name.endswith(".toml"):
            path = Path(name)
            if not path.is_file():
                raise UsageError(f"suite file {name!r} does not exist")
            return path
        return _look_up("suite", name, self.suites)


def _look_up(kind: str, name: str, known: Mapping[str, Any]) -> Any:
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(known)) or 'none'}."
    raise UsageError(f"no {kind} is called {name!r}; {hint} `harness list {kind}s` shows all.")


def build_registry(block: Collection[str] = ()) -> Registry:
    """Load every plugin and return what they registered.

    Args:
        block: Names of entry points, plugins or distributions to leave out; ``HARNESS_BLOCK`` (comma separated) adds to them.

    Raises:
        PluginLoadError: A plugin cannot be imported, misspells a hook, or claims a name that another has.
    """
    blocked = {*block, *filter(None, os.environ.get("HARNESS_BLOCK", "").split(","))}
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    origins: dict[str, Origin] = {}
    for point in sorted(metadata.entry_points(group=GROUP), key=lambda each: (each.name, each.value)):
        distribution = point.dist.name if point.dist else "unknown"
        version = point.dist.version if point.dist else "0"
        if blocked & {point.name, distribution}:
            continue
        how = f"entry point {point.name!r} of {distribution} {version}"
        for name, load in _modules(point, how):
            if name in blocked:
                continue
            advice = f"Fix or uninstall it, or go on without it: --block {name} (or HARNESS_BLOCK={name})."
            try:
                module = load()
                origin = Origin(name, distribution, version, str(getattr(module, "__file__", "?")))
                if manager.has_plugin(name):
                    raise PluginLoadError(f"two plugins are called {name!r}: {origins[name].file} and {origin.file}.")
                manager.register(module, name)
                manager.check_pending()
            except PluginLoadError:
                raise
            except Exception as error:
                raise PluginLoadError(
                    f"plugin {name!r} ({how}, {point.value}) does not load: {type(error).__name__}: {error}. {advice}"
                ) from error
            origins[name] = origin
    return _collect(manager, origins)


def _modules(point: metadata.EntryPoint, how: str) -> Iterator[tuple[str, Callable[[], ModuleType]]]:
    """Yield (plugin name, loader) for the module an entry point names, or for each module of the package it names."""
    try:
        target = point.load()
    except Exception as error:
        raise PluginLoadError(
            f"{how} ({point.value}) does not load: {type(error).__name__}: {error}. "
            f"Fix or uninstall it, or go on without it: --block {point.name} (or HARNESS_BLOCK={point.name})."
        ) from error
    if not isinstance(target, ModuleType):
        raise PluginLoadError(
            f"{how} names {point.value!r}, a {type(target).__name__}; it must name a module or a package."
        )
    if not hasattr(target, "__path__"):
        yield point.name, lambda: target
        return
    hooks = [name for name in vars(target) if name.startswith("harness_") and callable(getattr(target, name))]
    if hooks:
        yield point.name, lambda: target
    for info in pkgutil.walk_packages(target.__path__, f"{target.__name__}."):
        short = info.name.removeprefix(f"{target.__name__}.")
        yield f"{point.name}:{short}", lambda full=info.name: import_module(full)  # type: ignore[misc]


def _collect(manager: pluggy.PluginManager, origins: Mapping[str, Origin]) -> Registry:
    """Ask every plugin what it registers, keeping who said it."""
    from harness.method import Method
    from harness.task import Task

    found: dict[tuple[str, str], Origin] = {}
    tables: dict[str, dict[str, Any]] = {"method": {}, "task": {}, "suite": {}}

    def add(kind: str, name: Any, thing: Any, origin: Origin) -> None:
        if not isinstance(name, str) or not name:
            raise PluginLoadError(
                f"plugin {origin.plugin!r} ({origin.file}) registers a {kind} without a name: {thing!r}."
            )
        if name in tables[kind]:
            other = found[kind, name]
            raise PluginLoadError(
                f"two plugins register a {kind} called {name!r}: {other.file} ({other.pin}) and {origin.file} ({origin.pin}). "
                f"Rename one, or leave one out: --block {origin.plugin}."
            )
        tables[kind][name], found[kind, name] = thing, origin

    for kind, base in (("method", Method), ("task", Task), ("suite", Path)):
        implementations: Sequence[Any] = getattr(manager.hook, f"harness_register_{kind}s").get_hookimpls()
        for implementation in sorted(implementations, key=lambda each: str(each.plugin_name)):
            origin = origins[implementation.plugin_name]
            try:
                things = implementation.function()
            except Exception as error:
                raise PluginLoadError(
                    f"plugin {origin.plugin!r} ({origin.pin}, {origin.file}) fails to register its {kind}s: "
                    f"{type(error).__name__}: {error}. Go on without it: --block {origin.plugin}."
                ) from error
            for thing in things:
                right = isinstance(thing, Path) if base is Path else inspect.isclass(thing) and issubclass(thing, base)
                if not right:
                    raise PluginLoadError(
                        f"plugin {origin.plugin!r} ({origin.file}) registers {thing!r} as a {kind}; "
                        f"it must be {'a pathlib.Path' if base is Path else f'a subclass of harness.{base.__name__}'}."
                    )
                add(kind, thing.stem if base is Path else getattr(thing, "name", None), thing, origin)
    ordered = {kind: dict(sorted(table.items())) for kind, table in tables.items()}
    return Registry(manager.hook, ordered["method"], ordered["task"], ordered["suite"], found)
