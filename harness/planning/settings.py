"""Settings as text: ``name=value,name=value`` of a method, an analysis or an executor, and single values.

What is not here: sizes that a budget decides (``budget``), lists of values to search (``choices``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.contract.analysis import Analysis
from harness.contract.executor import Executor
from harness.contract.method import Method
from harness.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from harness.planning.registry import Registry

WINDOW = 256  # accepted values of a knob lie closer together than this


def parse_settings(text: str, method: type[Method]) -> Any:
    """Return a method's config from ``name=value,name=value``.

    Raises:
        ConfigError: Unknown field, or a value that the field does not allow.
    """
    return method.Config(**read_settings(text, method))


def parse_settings_but_knob(text: str, method: type[Method]) -> Any:
    """Return a method's config from ``name=value,name=value``; the budget knob has any accepted value, to be replaced.

    Raises:
        ConfigError: Unknown field, a value that the field does not allow, or the knob, which the budget decides.
    """
    values, knob = read_settings(text, method), method.traits.budget_knob
    if knob in values:
        raise ConfigError(
            f"{method.name}: {knob}={values[knob]} cannot be set, the budget decides it; "
            f"leave it out, or ask for the budget that it makes: --budget {method.name}:{text}"
        )
    try:
        return method.Config(**values)
    except ConfigError:  # perhaps only the knob's default does not go with these values
        for value in range(1, WINDOW) if knob else ():
            try:
                return method.Config(**values, **{str(knob): value})
            except ConfigError:
                continue
        raise


def read_executor(registry: Registry, text: str, address: str | None = None) -> Executor:
    """Return the executor that ``NAME`` or ``NAME:setting=value,...`` stands for.

    Args:
        registry: Knows them.
        text: What the user wrote.
        address: Of its cluster, if that was said apart.

    Raises:
        HarnessError: There is none of this name, or it has no such setting.
    """
    name, _, settings = text.partition(":")
    kind = registry.executor(name)
    given = read_settings(settings, kind)
    if address is not None:
        if "address" not in kind.Config.__dataclass_fields__:
            raise UsageError(f"--address {address!r}: the executor {name!r} has no address; leave it out")
        given["address"] = address
    return kind(kind.Config(**given))


def read_settings(text: str, method: type[Method] | type[Analysis] | type[Executor]) -> dict[str, Any]:
    """Return values from ``name=value,name=value``, of the types that the defaults have.

    Raises:
        ConfigError: Unknown field, or a value that cannot be read.
    """
    defaults = method.Config()
    values: dict[str, Any] = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        name, equals, raw = part.partition("=")
        if not equals or name not in defaults.__dataclass_fields__:
            known = ", ".join(defaults.__dataclass_fields__)
            raise ConfigError(
                f"{method.name}: cannot read setting {part!r}; write field=value, fields: {known or 'none'}"
            )
        kind = defaults.__dataclass_fields__[name].metadata.get("kind")
        values[name] = parse_value(raw, getattr(defaults, name), f"{method.name}: {name}", kind)
    return values


def parse_value(raw: str, default: Any, what: str, kind: type | None = None) -> Any:
    """Return text as the type of a field's default value.

    Args:
        raw: What the user wrote.
        default: The field's.
        what: Names it in an error.
        kind: Type of the field's values where the default is a word that stands for one, see ``setting``.

    Raises:
        ConfigError: It cannot be read as that type.
    """
    word = default
    if kind is not None:
        if raw == word:
            return word
        default = kind()
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False, "1": True, "0": False}[raw.lower()]
        if isinstance(default, int):
            return int(raw)
        if isinstance(default, float):
            return float(raw)
        if isinstance(default, tuple):
            words = [each for each in raw.split("+") if each]
            return tuple(words if default and isinstance(default[0], str) else map(int, words))
    except (ValueError, KeyError):
        kinds = {bool: "true or false", int: "a whole number", float: "a number", tuple: "whole numbers joined by +"}
        example = "+".join(map(str, default)) if isinstance(default, tuple) else word
        said = f", as the default {example}" if example != "" else ""
        raise ConfigError(f"{what}={raw!r} cannot be read; give {kinds[type(default)]}{said}") from None
    return raw
