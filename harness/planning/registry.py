"""Finding methods, tasks, suites and observers: one door for built-ins and strangers.

An entry point of group ``harness`` names a module or a package. A module is registered as a plugin. Of a package,
every submodule is registered as its own plugin, named ``<entry point>:<module>``, so that a new method is one new file.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from harness.contract import hookspecs
from harness.errors import PluginLoadError, UsageError
from harness.planning.declared import check_declared
from harness.planning.identity import identify
from harness.planning.patience import in_time

if TYPE_CHECKING:
    from harness.contract.analysis import Analysis
    from harness.contract.data_task import DataTask
    from harness.contract.executor import Executor
    from harness.contract.method import Method
    from harness.contract.task import Task

GROUP = "harness"
MEMBER = re.compile(r"([a-z0-9][a-z0-9_.+-]*):([a-z0-9][a-z0-9_.+-]*)")  # a method of a family
SLUG = re.compile(r"[a-z0-9][a-z0-9_.+-]*(/[a-z0-9][a-z0-9_.+-]*)*")  # a name that the command line can take apart
RESERVED = ("all", "everything")
REQUIRED = {
    "method": ("paper",),
    "task": ("main_metric", "metrics", "recipes"),
    "data_task": ("main_metric", "metrics", "recipes"),
    "suite": (),
    "analysis": ("columns",),
    "executor": (),
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """Where a registered thing comes from."""

    plugin: str
    distribution: str
    version: str
    file: str
    module: str = ""
    source: metadata.Distribution | None = field(default=None, compare=False, repr=False)

    @property
    def pin(self) -> str:
        """Return ``distribution==version``."""
        return f"{self.distribution}=={self.version}"

    @cached_property
    def identity(self) -> str:
        """Return ``distribution==version``, and what else tells this source from an edited one."""
        return identify(self.source, self.module)


@dataclass(frozen=True)
class Registry:
    """Everything the plugins registered. Read-only."""

    hook: Any
    methods: Mapping[str, type[Method]]
    tasks: Mapping[str, type[Task]]
    suites: Mapping[str, Path]
    analyses: Mapping[str, type[Analysis]]
    origins: Mapping[tuple[str, str], Origin]
    data_tasks: Mapping[str, type[DataTask]]
    executors: Mapping[str, type[Executor]]
    families: Mapping[str, Mapping[str, type[Method]]] = field(default_factory=dict)

    def method(self, name: str) -> type[Method]:
        """Return the method of this name; an unknown one raises ``UsageError`` with near misses."""
        family, colon, member = name.partition(":")
        if colon and family in self.families:
            if member not in self.families[family]:
                raise unknown_name(f"method of {family}", member, self.families[family])
            return self.families[family][member]
        if name not in self.methods:
            raise unknown_name("method", name, [*self.methods, *(f"{each}:NAME" for each in self.families)])
        return self.methods[name]

    @property
    def every_method(self) -> Mapping[str, type[Method]]:
        """Return all methods, those of families included, by name."""
        return {**self.methods, **{each.name: each for family in self.families.values() for each in family.values()}}

    def split_method(self, text: str) -> tuple[str, str]:
        """Return the name and the settings of ``name:field=value``, or of a family's ``family:name,field=value``."""
        name, _, settings = text.partition(":")
        if name not in self.families or name in self.methods:
            return name, settings
        member, settings = [*re.split("[:,]", settings, maxsplit=1), ""][:2]
        return f"{name}:{member}", settings

    def task(self, name: str) -> type[Task]:
        """Return the task of this name; an unknown one raises ``UsageError`` with near misses.

        ``<kind>/<title>`` is the task of that kind on the data that a user brings.
        """
        if name in self.tasks:
            return self.tasks[name]
        kind, slash, _ = name.partition("/")
        if slash and kind in self.data_tasks:
            return self.data_tasks[kind].named(name)
        raise unknown_name("task", name, self.tasks)

    def data_task(self, kind: str) -> type[DataTask]:
        """Return the task for a kind of data; none raises ``UsageError``."""
        if kind not in self.data_tasks:
            raise unknown_name("kind of data", kind, self.data_tasks)
        return self.data_tasks[kind]

    def origin(self, kind: str, name: str) -> Origin:
        """Return where a method or a task comes from."""
        known = name if (kind, name) in self.origins else name.partition("/")[0]
        return self.origins[(kind, name) if known == name else (f"data_{kind}", known)]

    def analysis(self, name: str) -> type[Analysis]:
        """Return the analysis of this name; an unknown one raises ``UsageError`` with near misses."""
        if name not in self.analyses:
            raise unknown_name("analysis", name, self.analyses)
        return self.analyses[name]

    def executor(self, name: str) -> type[Executor]:
        """Return the executor of this name; an unknown one raises ``UsageError`` with near misses."""
        if name not in self.executors:
            raise unknown_name("executor", name, self.executors)
        return self.executors[name]

    def suite(self, name: str) -> Path:
        """Return the path of a registered suite, or of a ``.toml`` file given by path."""
        if name.endswith(".toml"):
            path = Path(name)
            if not path.is_file():
                raise UsageError(f"suite file {name!r} does not exist; `harness list suites` shows the registered ones")
            return path
        if name not in self.suites:
            raise unknown_name("suite", name, self.suites)
        return self.suites[name]


def unknown_name(kind: str, name: str, known: Collection[str]) -> UsageError:
    """Return the error for a name that nothing has, with near misses."""
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(known)) or 'none'}"
    return UsageError(f"no {kind} is called {name!r}; {hint}")


def build_registry(block: Collection[str] = ()) -> Registry:
    """Load every plugin and return what they registered.

    Args:
        block: Names of entry points, plugins or distributions to leave out. ``HARNESS_BLOCK`` (comma separated) adds
            to them.

    Raises:
        PluginLoadError: A plugin cannot be imported, misspells a hook, declares something that cannot be used, or
            claims a name that another has.
    """
    blocked = {*block, *filter(None, os.environ.get("HARNESS_BLOCK", "").split(","))}
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    origins: dict[str, Origin] = {}
    seen: set[str] = set()
    for point in sorted(metadata.entry_points(group=GROUP), key=lambda each: (each.name, each.value)):
        distribution = point.dist.name if point.dist else "unknown"
        version = point.dist.version if point.dist else "0"
        seen |= {point.name, distribution}
        if blocked & {point.name, distribution}:
            continue
        how, found_hooks = f"entry point {point.name!r} of {distribution} {version}", False
        for name, load in _modules(point, how):
            seen.add(name)
            if name in blocked:
                found_hooks = True
                continue
            advice = f"Fix or uninstall it, or go on without it: --block {name} (or HARNESS_BLOCK={name})."
            try:
                with in_time():
                    module = load()
                file = str(getattr(module, "__file__", "?"))
                origin = Origin(name, distribution, version, file, module.__name__, point.dist)
                if manager.has_plugin(name):
                    raise PluginLoadError(
                        f"two plugins are called {name!r}: {origins[name].file} ({origins[name].pin}) and "
                        f"{origin.file} ({origin.pin}). Leave one out: --block {origins[name].distribution}."
                    )
                _check_marked(module)
                manager.register(module, name)
                _check_known(manager, module)
            except (PluginLoadError, KeyboardInterrupt):
                raise
            except BaseException as error:  # a module that exits must not end the harness without a word
                raise PluginLoadError(
                    f"plugin {name!r} ({how}, {point.value}) does not load: {type(error).__name__}: {error}. {advice}"
                ) from error
            origins[name] = origin
            found_hooks = found_hooks or bool(manager.get_hookcallers(module))
        if not found_hooks:
            logger.warning("%s (%s) implements no hook: nothing was registered", how, point.value)
    for name in sorted(blocked - seen):
        logger.warning("nothing is called %r that could be blocked; plugins: %s", name, ", ".join(sorted(origins)))
    return _collect(manager, origins)


def _modules(point: metadata.EntryPoint, how: str) -> Iterator[tuple[str, Callable[[], ModuleType]]]:
    """Yield (plugin name, loader) for the module an entry point names, or for each module of the package it names."""
    try:
        with in_time():
            target = point.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
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
    if any(name.startswith("harness_") and callable(thing) for name, thing in vars(target).items()):
        yield point.name, lambda: target
    packages = [target]
    while packages:
        package = packages.pop(0)
        for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            short = info.name.removeprefix(f"{target.__name__}.")
            yield f"{point.name}:{short}", partial(import_module, info.name)
            if info.ispkg and info.name in sys.modules:  # not where the package itself was blocked
                packages.append(sys.modules[info.name])


def _check_marked(module: ModuleType) -> None:
    """Refuse a hook without its ``@hookimpl``, which pluggy would not see and not mention."""
    for name, thing in vars(module).items():
        own = inspect.isfunction(thing) and thing.__module__ == module.__name__
        if own and name in vars(hookspecs) and not hasattr(thing, f"{hookspecs.PROJECT}_impl"):
            raise TypeError(f"{name}() is not marked as a hook; write @hookimpl (from harness) above it")


def _check_known(manager: pluggy.PluginManager, module: ModuleType) -> None:
    """Refuse an implementation of no hook, as pluggy's ``check_pending`` does, and say which hook may be meant."""
    known = [name for name in vars(hookspecs) if name.startswith(f"{hookspecs.PROJECT}_")]
    for caller in manager.get_hookcallers(module) or ():
        if not caller.has_spec() and not all(each.optionalhook for each in caller.get_hookimpls()):
            near = difflib.get_close_matches(caller.name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise TypeError(f"{module.__file__} implements {caller.name!r}, which is no hook ({hint})")


def _collect(manager: pluggy.PluginManager, origins: Mapping[str, Origin]) -> Registry:
    """Ask every plugin what it registers, keeping who said it."""
    from harness.contract.analysis import Analysis
    from harness.contract.data_task import DataTask
    from harness.contract.executor import Executor
    from harness.contract.method import Method
    from harness.contract.task import Task

    found: dict[tuple[str, str], Origin] = {}
    tables: dict[str, dict[str, Any]] = {kind: {} for kind in REQUIRED}

    def add(kind: str, name: Any, thing: Any, origin: Origin) -> None:
        where = f"plugin {origin.plugin!r} ({origin.file})"
        is_member = kind == "method" and isinstance(name, str) and MEMBER.fullmatch(name) is not None
        if not isinstance(name, str) or not (is_member or SLUG.fullmatch(name)) or name.split(":")[-1] in RESERVED:
            raise PluginLoadError(
                f"{where} registers a {kind}, {thing!r}, whose name is {name!r}; "
                f"give it a name of lower-case letters, digits and -_.+ (not {' or '.join(RESERVED)})."
            )
        missing = [field for field in REQUIRED[kind] if not hasattr(thing, field)]
        if missing:
            raise PluginLoadError(f"{where} registers a {kind} {name!r} without {', '.join(missing)}; declare it.")
        if name in tables[kind]:
            other = found[kind, name]
            raise PluginLoadError(
                f"two plugins register a {kind} called {name!r}: {other.file} ({other.pin}) and {origin.file} "
                f"({origin.pin}). Rename one, or leave one out: --block {origin.plugin}."
            )
        problem = check_declared(kind, thing)
        if problem:
            raise PluginLoadError(
                f"{where[:-1]}, {origin.pin}) registers a {kind} {name!r} that cannot be used: {problem}. "
                f"Correct it, or go on without it: --block {origin.plugin}."
            )
        tables[kind][name], found[kind, name] = thing, origin

    kinds = (
        ("method", "methods", Method),
        ("task", "tasks", Task),
        ("suite", "suites", Path),
        ("analysis", "analyses", Analysis),
        ("data_task", "data_tasks", DataTask),
        ("executor", "executors", Executor),
    )
    for kind, several, base in kinds:
        implementations: Sequence[Any] = getattr(manager.hook, f"harness_register_{several}").get_hookimpls()
        for implementation in sorted(implementations, key=lambda each: str(each.plugin_name)):
            origin = origins[implementation.plugin_name]
            try:
                with in_time():
                    things = implementation.function()
                if not isinstance(things, Iterable):
                    raise TypeError(
                        f"{implementation.function.__name__}() returns {things!r}; return a list of {several}"
                    )
                things = list(things)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                raise PluginLoadError(
                    f"plugin {origin.plugin!r} ({origin.pin}, {origin.file}) fails to register its {several}: "
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
    families: dict[str, dict[str, type[Method]]] = {}
    for name in [name for name in ordered["method"] if ":" in name]:
        family, _, member = name.partition(":")
        families.setdefault(family, {})[member] = ordered["method"].pop(name)
    return Registry(
        manager.hook,
        ordered["method"],
        ordered["task"],
        ordered["suite"],
        ordered["analysis"],
        found,
        ordered["data_task"],
        ordered["executor"],
        families,
    )
