"""Budgets: how many adapter parameters a trial may train, and the settings with which each method spends them.

``lora:r=8``   what that method with these settings would train on the same layers
``0.5%``       a share of the base model's parameters
``300k``       a number, with an optional k, m or b

Every method has one integer *knob*, a field of its config. The solver inverts the method's own formula. Where one step
of the knob is too coarse for the tolerance, single layers get one step more (``layer_settings``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.errors import BudgetError, ConfigError
from harness.method import Method, total_parameters
from harness.registry import Registry

TOLERANCE_FRACTION = 0.01


@dataclass(frozen=True)
class Solution:
    """A method's settings for a budget.

    Attributes:
        config: For all layers not named in ``layer_settings``.
        layer_settings: ``{layer: {knob: value}}``.
        parameters: Trainable adapter parameters reached.
    """

    config: Any
    layer_settings: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    parameters: int = 0

    def deviation_fraction(self, budget: int) -> float:
        """Return how far the count is from the budget, signed, as a fraction of it."""
        return (self.parameters - budget) / budget


def parse_settings(text: str, method: type[Method]) -> Any:
    """Return a method's config from ``name=value,name=value``.

    Raises:
        ConfigError: Unknown field, or a value that the field does not allow.
    """
    config = method.Config()
    values: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, equals, raw = part.partition("=")
        if not equals or not hasattr(config, name):
            known = ", ".join(config.__dataclass_fields__)
            raise ConfigError(
                f"{method.name}: cannot read setting {part!r}; write field=value, fields: {known or 'none'}"
            )
        values[name] = parse_value(raw, getattr(config, name), f"{method.name}: {name}")
    return replace(config, **values)


def parse_value(raw: str, default: Any, what: str) -> Any:
    """Return text as the type of a field's default value.

    Raises:
        ConfigError: It cannot be read as that type.
    """
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False, "1": True, "0": False}[raw.lower()]
        if isinstance(default, int):
            return int(raw)
        if isinstance(default, float):
            return float(raw)
        if isinstance(default, tuple):
            return tuple(int(each) for each in raw.split("+") if each)
    except (ValueError, KeyError):
        raise ConfigError(f"{what}={raw!r} is not {type(default).__name__}; the default is {default!r}") from None
    return raw


def budget_parameters(
    text: str, layers: Mapping[str, tuple[int, int]], base_parameters: int, registry: Registry
) -> int:
    """Return the number of adapter parameters that a budget asks for.

    Args:
        text: As the user wrote it.
        layers: Adapted layers, ``{name: (in, out)}``.
        base_parameters: Of the whole base model, for percentages.
        registry: Finds the method that a budget like ``lora:r=8`` names.

    Raises:
        BudgetError: The text is not a budget, or not positive.
    """
    text = text.strip()
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text):
        count = round(float(match[1]) / 100 * base_parameters)
    elif match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKmMbB]?)", text):
        count = round(float(match[1]) * {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}[match[2].lower()])
    elif re.fullmatch(r"[^\s:=,]+(:.*)?", text) and not text[0].isdigit():
        name, _, settings = text.partition(":")
        method = registry.method(name)
        count = total_parameters(method(parse_settings(settings, method)), layers.values())
    else:
        raise BudgetError(
            f"--budget {text!r} is not a budget; write a method with settings (lora:r=8), a share (0.5%) or a count (300k)"
        )
    if count < 1:
        raise BudgetError(f"--budget {text!r} comes to {count} parameters; give at least 1")
    return count


def solve(
    method: type[Method],
    config: Any,
    budget: int,
    layers: Mapping[str, tuple[int, int]],
    tolerance_fraction: float = TOLERANCE_FRACTION,
) -> Solution:
    """Return the settings with which a method comes nearest to a budget.

    Args:
        method: The method.
        config: Its other settings; the knob in it is replaced.
        budget: Adapter parameters asked for.
        layers: Adapted layers, ``{name: (in, out)}``.
        tolerance_fraction: Largest deviation allowed, as a fraction of the budget.

    Raises:
        BudgetError: Nothing within the tolerance can be reached; names the two nearest counts.
        ConfigError: The method cannot be applied to a layer of the model.
    """
    knob = method.traits.budget_knob
    shapes = list(layers.values())
    if knob is None:
        solution = Solution(config, {}, total_parameters(method(config), shapes))
        return _within(method, solution, [solution.parameters], budget, tolerance_fraction)

    def count(value: int) -> int:
        return total_parameters(method(replace(config, **{knob: value})), shapes)

    low = _largest_not_above(count, budget)
    if low is None:  # even the smallest knob is too much
        smallest = _smallest(count)
        solution = Solution(replace(config, **{knob: smallest}), {}, count(smallest))
        return _within(method, solution, [solution.parameters], budget, tolerance_fraction)
    below = Solution(replace(config, **{knob: low}), {}, count(low))
    high = _next(count, low)
    if high is None or below.parameters == budget:
        return _within(method, below, [below.parameters], budget, tolerance_fraction)
    above = Solution(replace(config, **{knob: high}), {}, count(high))
    nearest = min((below, above), key=lambda each: abs(each.parameters - budget))
    if abs(nearest.deviation_fraction(budget)) > tolerance_fraction:
        nearest = _mix(method, config, knob, low, high, budget, layers)
    reachable = sorted({below.parameters, nearest.parameters, above.parameters})
    return _within(method, nearest, reachable, budget, tolerance_fraction)


def _within(
    method: type[Method], solution: Solution, reachable: Sequence[int], budget: int, tolerance: float
) -> Solution:
    if abs(solution.deviation_fraction(budget)) <= tolerance:
        return solution
    nearest = sorted(sorted(reachable, key=lambda each: abs(each - budget))[:2])
    raise BudgetError(
        f"{method.name}: a budget of {budget:,} adapter parameters cannot be reached within {tolerance:.1%}; "
        f"nearest counts: {' and '.join(f'{each:,}' for each in nearest)}. Give one of these as --budget, or a wider --tolerance."
    )


def _attempt(count: Any, value: int) -> int | None:
    """Return the count at a knob value, or ``None`` where the method refuses it."""
    try:
        return int(count(value))
    except ConfigError:
        return None


def _smallest(count: Any) -> int:
    """Return the smallest knob value that the method accepts; refusals of every value are raised."""
    for value in (*range(1, 65), *(2**power for power in range(7, 17))):
        if _attempt(count, value) is not None:
            return value
    count(1)  # raises the method's own reason
    raise BudgetError("no value of the knob is accepted")


def _largest_not_above(count: Any, budget: int) -> int | None:
    """Return the largest accepted knob value whose count is at most the budget, by bisection: counts never fall."""
    low = _smallest(count)
    if count(low) > budget:
        return None
    high = low * 2
    while (reached := _attempt(count, high)) is not None and reached <= budget and high < 2**31:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        reached = _attempt(count, middle)
        if reached is not None and reached <= budget:
            low = middle
        else:
            high = middle
    return low


def _next(count: Any, low: int) -> int | None:
    """Return the next knob value that trains more, or ``None`` where there is none."""
    base = count(low)
    for value in range(low + 1, low + 65):
        reached = _attempt(count, value)
        if reached is None:
            return None
        if reached > base:
            return value
    return None


def _mix(
    method: type[Method],
    config: Any,
    knob: str,
    low: int,
    high: int,
    budget: int,
    layers: Mapping[str, tuple[int, int]],
) -> Solution:
    """Give some layers the higher knob value, so that the total comes nearest to the budget.

    Layers with the same step are alike, so what matters is how many of each kind: a bounded subset sum over the kinds,
    keeping one candidate per 1/10,000 of the budget. Of each kind, the chosen layers are spread evenly over the depth.
    """
    methods = {value: method(replace(config, **{knob: value})) for value in (low, high)}
    base, kinds = 0, dict[int, list[str]]()
    for name, shape in layers.items():
        count = methods[low].trainable_parameters(*shape)
        base += count
        kinds.setdefault(methods[high].trainable_parameters(*shape) - count, []).append(name)
    grain = max(1, budget // 10_000)
    reached: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}  # rounded sum -> (sum, how many of each kind so far)
    for step, names in kinds.items():
        further: dict[int, tuple[int, tuple[int, ...]]] = {}
        for total, taken in reached.values():
            for number in range(len(names) + 1):
                larger = total + number * step
                further.setdefault(larger // grain, (larger, (*taken, number)))
        reached = further
    total, taken = min(reached.values(), key=lambda each: (abs(base + each[0] - budget), each[1]))
    chosen = [name for names, number in zip(kinds.values(), taken, strict=True) for name in _spread(names, number)]
    settings = {name: {knob: high} for name in layers if name in set(chosen)}
    return Solution(replace(config, **{knob: low}), settings, base + total)


def _spread(names: Sequence[str], number: int) -> list[str]:
    """Return ``number`` of the names, evenly spaced."""
    return [names[(2 * place + 1) * len(names) // (2 * number)] for place in range(number)]
