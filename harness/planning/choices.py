"""From the names that a suite gives to methods with their settings, several of which may be searched.

``melora:n=2|4|8,alpha=16`` is one method with three settings: one of them is chosen on validation and reported.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from harness.contract.method import Method
from harness.errors import ConfigError, UsageError
from harness.planning.registry import Registry
from harness.planning.settings import parse_settings, parse_settings_but_knob


@dataclass(frozen=True)
class Choice:
    """What a suite asks of one method.

    Attributes:
        written: The name with its settings, as the suite has it; of ``all`` and the like, the method's name.
        method: The method.
        configs: Its settings; where there are several, a search chooses.
    """

    written: str
    method: type[Method]
    configs: tuple[Any, ...]


def resolve_methods(names: Sequence[str], registry: Registry, with_knob: bool = False) -> list[Choice]:
    """Return methods for names, ``all``, ``everything``, ``name:field=value|value``; ``-name`` excludes.

    Of a family, e.g. another library's, the name is ``family:name`` or ``family:name,field=value``, and ``family:all``
    is all of them. These run only where they are named.

    Args:
        names: As a suite gives them.
        registry: Finds methods.
        with_knob: Whether the settings decide the size, so that the knob may be given; else the budget decides it.
    """
    excluded = {name[1:] for name in names if name.startswith("-")}
    for name in excluded:
        registry.method(name)
    chosen: dict[tuple[str, str], Choice] = {}
    for name in names:
        if name.startswith("-"):
            continue
        family, _, rest = name.partition(":")
        settings = ""
        if name in ("all", "everything"):
            found = [m for m in registry.methods.values() if name == "everything" or m.traits.in_all]
        elif family in registry.families and rest == "all":
            found = list(registry.families[family].values())
        else:
            plain, settings = registry.split_method(name)
            found = [registry.method(plain)]
        for method in found:
            if method.name not in excluded:
                configs = read_choices(settings, method, with_knob)
                written = name if settings else method.name
                chosen[method.name, repr(configs)] = Choice(written, method, configs)
    if not chosen:
        raise UsageError(f"methods {', '.join(names)} leaves nothing to run; exclude fewer")
    return list(chosen.values())


def read_choices(settings: str, method: type[Method], with_knob: bool = False) -> tuple[Any, ...]:
    """Return the configs of ``field=value,field=value|value``: every combination of the values.

    Raises:
        ConfigError: A setting that cannot be read, or two combinations that are the same.
    """
    parts = [each.strip() for each in settings.split(",") if each.strip()]
    values = [
        [f"{name}{equals}{value}" for value in text.split("|")]
        for name, equals, text in (each.partition("=") for each in parts)
    ]
    read = parse_settings if with_knob else parse_settings_but_knob
    configs = tuple(read(",".join(each), method) for each in product(*values))
    if len({repr(each) for each in configs}) < len(configs):
        raise ConfigError(f"{method.name}: {settings!r} gives one of the values to search twice; give each once")
    return configs


def split_names(text: str) -> list[str]:
    """Split a comma-separated list of names, keeping commas between the settings of one name (``a:x=1,y=2,b``)."""
    return [each.strip() for each in re.split(r",(?!\w+=)", text) if each.strip()]
