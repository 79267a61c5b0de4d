"""Settings: documented, range-checked fields of a method's ``Config`` or of a task's ``Recipe``.

What is not here: settings as text (``planning.settings``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from harness.errors import ConfigError


def setting(
    default: Any,
    help: str,
    *,
    kind: type | None = None,
    formerly: Any = None,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[Any] | None = None,
) -> Any:
    """Declare one documented, range-checked field of a ``MethodConfig`` (or of a task's ``Recipe``).

    Args:
        default: The value used when the user gives none.
        help: What it means, with its unit and the table or section it comes from.
        kind: Type of the values, where the default is a word that stands for one, e.g. ``"auto"`` or ``"all"``. The
            field is annotated with both: ``alpha: float | Literal["auto"] = setting("auto", ..., kind=float)``.
        formerly: A value that stood for that word in older suites, code and records; it is read as the word.
        minimum: Smallest value allowed, inclusive.
        maximum: Largest value allowed, inclusive.
        choices: The only values allowed.
    """
    metadata = {
        "help": help, "kind": kind, "formerly": formerly, "minimum": minimum, "maximum": maximum, "choices": choices,
    }  # fmt: skip
    return field(default=default, metadata=metadata)


def check_settings(owner: object) -> None:
    """Check every ``setting`` of a dataclass instance against its declared type and range.

    Raises:
        ConfigError: naming the field, its value and what was allowed.
    """
    for each in dataclasses.fields(cast(Any, owner)):
        value, formerly = getattr(owner, each.name), each.metadata.get("formerly")
        if formerly is not None and value == formerly and not isinstance(value, bool):
            object.__setattr__(owner, each.name, each.default)
        elif not _allows(each, value):
            raise ConfigError(
                f"{type(owner).__qualname__}: {each.name}={value!r} is not allowed; give {describe_range(each)}"
            )


def _allows(each: dataclasses.Field[Any], value: Any) -> bool:
    of_values, choices = each.metadata.get("kind"), each.metadata.get("choices")
    minimum, maximum = each.metadata.get("minimum"), each.metadata.get("maximum")
    if of_values is not None and value == each.default:  # the word that stands for a value
        return True
    if each.default is not None and each.default is not dataclasses.MISSING:
        wanted: type = of_values or type(each.default)
        # bool is an int in Python, but r=True is a mistake.
        if not isinstance(value, (int, float) if wanted is float else wanted) or (
            isinstance(value, bool) and wanted is not bool
        ):
            return False
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if choices is not None and value not in choices:
        return False
    return value is None or not ((minimum is not None and value < minimum) or (maximum is not None and value > maximum))


def describe_range(each: dataclasses.Field[Any]) -> str:
    """Return what a ``setting`` allows, in words, e.g. ``an int >= 1`` or ``'auto' or a float >= 0``."""
    choices, of_values = each.metadata.get("choices"), each.metadata.get("kind")
    if choices is not None:
        return "one of " + ", ".join(map(repr, choices))
    minimum, maximum = each.metadata.get("minimum"), each.metadata.get("maximum")
    name = (of_values or type(each.default)).__name__
    kind = "a value" if each.default is None else f"{'an' if name == 'int' else 'a'} {name}"
    kind = kind if of_values is None else f"{each.default!r} or {kind}"
    if minimum is not None and maximum is not None:
        return f"{kind} between {minimum} and {maximum}"
    if minimum is not None:
        return f"{kind} >= {minimum}"
    if maximum is not None:
        return f"{kind} <= {maximum}"
    return kind


@dataclass(frozen=True)
class MethodConfig:
    """Base of a method's settings: a frozen dataclass whose fields are all ``setting(...)``, checked when built."""

    def __post_init__(self) -> None:
        """Check every field; a subclass that adds cross-field checks calls ``super().__post_init__()`` first."""
        check_settings(self)
