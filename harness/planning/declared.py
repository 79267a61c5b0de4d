"""What every command relies on in what a plug-in declares, checked when the plug-in is loaded.

What is not here: finding plug-ins (``registry``), whether a method does what it says (``harness check``).
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.contract.method import Method
    from harness.contract.task import Task

# The types of default that a field annotated so may have; other annotations are left to the class itself.
PLAIN: Mapping[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}


def check_declared(kind: str, thing: Any) -> str:
    """Return what is wrong with what a method or task class declares, and what to write instead; empty if nothing.

    Only what every command relies on. Whether a method does what it says is for ``harness check``.
    """
    if kind == "method":
        return _check_config(thing.Config) or _check_traits(thing)
    if kind == "executor":
        return "it is abstract; define " + ", ".join(sorted(missing)) if (missing := thing.__abstractmethods__) else ""
    if kind in ("task", "data_task"):
        problem = _check_values(thing, "metrics", "Metric") or _check_values(thing, "recipes", "Recipe")
        if problem or thing.main_metric in list(thing.metrics):
            return problem
        known = ", ".join(thing.metrics) or "none yet"
        return f"main_metric is {thing.main_metric!r}; make it one of its metrics ({known})"
    return ""


def _check_config(config: Any) -> str:
    if not inspect.isclass(config) or not dataclasses.is_dataclass(config):
        return f"Config is {config!r}; make it a frozen dataclass, a subclass of harness.MethodConfig"
    name = config.__qualname__
    if undecorated := [key for key, value in vars(config).items() if isinstance(value, dataclasses.Field)]:
        return f"{name} declares {', '.join(undecorated)} but is no dataclass; write @dataclass(frozen=True) above it"
    bare = [
        each.name
        for each in dataclasses.fields(config)
        if each.init and each.default is each.default_factory is dataclasses.MISSING
    ]
    if bare:
        return f"{name} has no default for {', '.join(bare)}; give every field one, with harness.setting(default, help)"
    for each in dataclasses.fields(config):
        annotation = each.type if isinstance(each.type, str) else getattr(each.type, "__name__", "")
        if each.default is None or each.default is dataclasses.MISSING or annotation not in PLAIN:
            continue
        if not isinstance(each.default, PLAIN[annotation]) or (isinstance(each.default, bool) and annotation != "bool"):
            return f"the default of {name}.{each.name} is {each.default!r}; make it of type {annotation}, as declared"
    try:
        config()
    except Exception as error:  # noqa: BLE001 - whatever it is, the caller raises with it
        return f"the defaults of {name} are refused: {type(error).__name__}: {error}"
    return ""


def _check_traits(method: type[Method]) -> str:
    from harness.contract.method import MethodTraits

    traits: Any = method.traits
    if not isinstance(traits, MethodTraits):
        return f"traits is {traits!r}; write traits = MethodTraits(...)"
    knob, config = traits.budget_knob, method.Config()
    fields = [each.name for each in dataclasses.fields(config) if type(getattr(config, each.name)) is int]
    if knob is None or knob in fields:
        return ""
    return (
        f"traits.budget_knob is {knob!r}, which is no int field of {method.Config.__qualname__}; write "
        f"MethodTraits(budget_knob=...) with one of {', '.join(fields) or 'its int fields (it has none)'}, "
        "or with None where the size is fixed"
    )


def _check_values(task: type[Task], field: str, wanted: str) -> str:
    from harness.contract import task as contract

    values: Any = getattr(task, field)
    if not isinstance(values, Mapping):
        return f"{field} is {values!r}; make it a dict of names to harness.{wanted}"
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, getattr(contract, wanted)):
            return f"{field}[{name!r}] is {value!r}; make it a harness.{wanted}(...) under a name"
    return ""
