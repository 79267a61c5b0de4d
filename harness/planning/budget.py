"""Budgets: how many adapter parameters a trial may train, and the settings with which each method spends them.

``lora:r=8``   what that method with these settings would train on the same layers
``0.5%``       a share of the base model's parameters
``300k``       a number, with an optional k, m or b

Every method has one integer *knob*, a field of its config. The solver inverts the method's own formula. Where one step
of the knob is too coarse for the tolerance, single layers get one step more (``layer_settings``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import nn

from harness.contract.method import Method, TrialContext, attaches
from harness.errors import BudgetError, ConfigError, PluginLoadError, UsageError
from harness.planning.counting import TRAINED, UNKNOWN, count_on_layer, count_parameters_of
from harness.planning.registry import RESERVED, Registry
from harness.planning.settings import WINDOW, parse_settings

TOLERANCE_FRACTION = 0.01


@dataclass(frozen=True)
class Solution:
    """A method's settings for a budget.

    Attributes:
        config: For all layers not named in ``layer_settings``.
        layer_settings: ``{layer: {field: value}}``: the knob, and what follows from it.
        parameters: Adapter parameters reached when training ends.
        trained: Those that training starts with.
        largest: The method cannot train more, and these are too few for the budget.
    """

    config: Any
    layer_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    parameters: int = 0
    trained: int = 0
    largest: bool = False

    def deviation_fraction(self, budget: int) -> float:
        """Return how far the count is from the budget, signed, as a fraction of it."""
        return (self.parameters - budget) / budget


LONGEST_BUDGET = 300  # characters: so every number in it is one that can be computed with


def budget_parameters(
    text: str,
    layers: Mapping[str, tuple[int, int]],
    base_parameters: int,
    registry: Registry,
    context: TrialContext = UNKNOWN,
    skeleton: nn.Module | None = None,
) -> int:
    """Return the number of adapter parameters that a budget asks for.

    Args:
        text: As the user wrote it.
        layers: Adapted layers, ``{name: (in, out)}``.
        base_parameters: Of the whole base model, for percentages.
        registry: Finds the method that a budget like ``lora:r=8`` names.
        context: Decides settings that are left to that method.
        skeleton: The model without weights, for methods that are counted by attaching them.

    Raises:
        BudgetError: The text is not a budget, or not positive, or names no method that can be one.
        PluginLoadError: The formula of the method that it names fails.
    """
    text = text.strip()
    if len(text) > LONGEST_BUDGET:
        raise BudgetError(f"--budget {text[:60]!r}... is longer than any budget; write lora:r=8, 0.5% or 300k")
    if match := re.fullmatch(r"(-?\d+(?:\.\d+)?)\s*%", text):
        count = round(float(match[1]) / 100 * base_parameters)
    elif match := re.fullmatch(r"(-?\d+(?:\.\d+)?)\s*([kKmMbB]?)", text):
        count = round(float(match[1]) * {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}[match[2].lower()])
    elif re.fullmatch(r"[^\s:=,]+(:.*)?", text) and text[0].isalpha():
        try:
            count = _count_of_named(text, layers, registry, context, skeleton)
        except PluginLoadError:
            raise
        except UsageError as error:
            raise BudgetError(f"--budget {text!r}: {error}") from error
    else:
        raise BudgetError(
            f"--budget {text!r} is not a budget; "
            "write a method with settings (lora:r=8), a share (0.5%) or a count (300k)"
        )
    if count < 1:
        raise BudgetError(f"--budget {text!r} comes to {count:,} parameters; give at least 1")
    return count


def _count_of_named(
    text: str, layers: Mapping[str, tuple[int, int]], registry: Registry, context: TrialContext,
    skeleton: nn.Module | None,
) -> int:  # fmt: skip
    """Return what the method of a budget like ``lora:r=8`` trains with those settings."""
    name, settings = registry.split_method(text)
    if name in RESERVED:
        raise BudgetError(f"{name!r} stands for several methods, each of its own size; name one of them (lora:r=8)")
    method = registry.method(name)
    if method.traits.reference:
        raise BudgetError(f"{name} is a reference outside every budget; name an adapter method")
    return count_parameters_of(method, parse_settings(settings, method), layers, skeleton, context)


def solve(
    method: type[Method],
    config: Any,
    budget: int,
    layers: Mapping[str, tuple[int, int]],
    tolerance_fraction: float = TOLERANCE_FRACTION,
    context: TrialContext = UNKNOWN,
    skeleton: nn.Module | None = None,
) -> Solution:
    """Return the settings with which a method comes nearest to a budget.

    Args:
        method: The method.
        config: Its other settings; the knob in it is replaced.
        budget: Adapter parameters asked for.
        layers: Adapted layers, ``{name: (in, out)}``.
        tolerance_fraction: Largest deviation allowed, as a fraction of the budget.
        context: Decides settings that are left to the method; in the solution they are values.
        skeleton: The model without weights, for methods that are counted by attaching them.

    Raises:
        BudgetError: Nothing within the tolerance can be reached, and the method could be larger; names the two nearest
            counts.
        ConfigError: The method cannot be applied to a layer of the model.
    """
    solution = _solve(method, config, budget, layers, tolerance_fraction, context, skeleton)
    resolved = method.resolve(solution.config, context)
    own: dict[str, Mapping[str, Any]] = {}
    trained = count_parameters_of(method, solution.config, layers, skeleton, context, TRAINED)
    for name, changes in solution.layer_settings.items():
        layer = method.resolve(replace(solution.config, **changes), context)
        values = {each.name: getattr(layer, each.name) for each in fields(layer)}
        own[name] = {key: value for key, value in values.items() if value != getattr(resolved, key)}
        for sign, each in ((1, layer), (-1, resolved)):
            trained += sign * count_on_layer(method(each), layers[name], TRAINED)
    return replace(solution, config=resolved, layer_settings=own, trained=trained)


def _solve(
    method: type[Method],
    config: Any,
    budget: int,
    layers: Mapping[str, tuple[int, int]],
    tolerance_fraction: float,
    context: TrialContext,
    skeleton: nn.Module | None,
) -> Solution:
    """Return the solution with words where the settings have words."""
    knob = method.traits.budget_knob
    if knob is None:
        fixed = Solution(config, {}, count_parameters_of(method, config, layers, skeleton, context))
        return _within(method, fixed, [fixed.parameters], budget, tolerance_fraction, is_end=True)
    counts = _Counts(config, knob, lambda each: count_parameters_of(method, each, layers, skeleton, context))
    if counts.next_larger(counts.smallest) is None:  # another setting has fixed the size
        fixed = Solution(config, {}, count_parameters_of(method, config, layers, skeleton, context))
        return _within(method, fixed, [fixed.parameters], budget, tolerance_fraction)
    low = counts.largest_not_above(budget)
    if low is None:  # even the smallest is too much
        low = counts.smallest
    high = counts.next_larger(low)
    ends = [Solution(replace(config, **{knob: value}), {}, counts[value]) for value in (low, high) if value is not None]
    nearest = min(ends, key=lambda each: abs(each.parameters - budget))
    if high is None or attaches(method) or abs(nearest.deviation_fraction(budget)) <= tolerance_fraction:
        counts_there = [each.parameters for each in ends]
        return _within(method, nearest, counts_there, budget, tolerance_fraction, is_end=high is None)
    mix = _Mix(method, config, knob, low, high, layers, context)
    around = mix.nearest(budget)
    return _within(method, mix.solution(min(around, key=lambda n: abs(n - budget))), around, budget, tolerance_fraction)


def _within(
    method: type[Method], solution: Solution, nearest: Sequence[int], budget: int, tolerance_fraction: float,
    is_end: bool = False,
) -> Solution:  # fmt: skip
    """Return a solution that is near enough, or that the method cannot be larger than (``is_end``)."""
    if abs(solution.deviation_fraction(budget)) <= tolerance_fraction:
        return solution
    if is_end and solution.parameters < budget:
        return replace(solution, largest=True)
    raise BudgetError(
        f"{method.name}: a budget of {budget:,} adapter parameters cannot be reached within {tolerance_fraction:.1%}; "
        f"nearest counts: {' and '.join(f'{each:,}' for each in sorted(set(nearest)))}. "
        "Give one of these as --budget, or a wider --tolerance."
    )


class _Counts:
    """Parameters by knob value. Counts never fall as the knob rises; a method may refuse single values.

    Accepted values are less than ``WINDOW`` apart, up to the largest.
    """

    def __init__(self, config: Any, knob: str, count: Callable[[Any], int]) -> None:
        self._config, self._knob, self._count = config, knob, count
        self._found: dict[int, int | ConfigError] = {}
        smallest = self._accepted(1, WINDOW)
        if smallest is None:
            reason = self._found[1]
            assert isinstance(reason, ConfigError)
            raise reason
        self.smallest = smallest

    def __getitem__(self, value: int) -> int:
        count = self._look(value)
        assert isinstance(count, int)
        return count

    def _look(self, value: int) -> int | ConfigError:
        if value not in self._found:
            try:
                config = replace(self._config, **{self._knob: value})
                self._found[value] = self._count(config)
            except ConfigError as error:
                self._found[value] = error
        return self._found[value]

    def _accepted(self, start: int, stop: int) -> int | None:
        """Return the first accepted value from ``start`` up to but without ``stop``, at most a window away."""
        values = range(start, min(stop, start + WINDOW))
        return next((value for value in values if isinstance(self._look(value), int)), None)

    def largest_not_above(self, budget: int) -> int | None:
        """Return the largest accepted value whose count is at most the budget, by doubling and then bisection."""
        low, high = self.smallest, self.smallest + 1
        if self[low] > budget:
            return None
        while (value := self._accepted(high, 2**31)) is not None and self[value] <= budget:
            low, high = value, 2 * value
        while high - low > 1:
            middle = (low + high) // 2
            value = self._accepted(middle, high)
            if value is not None and self[value] <= budget:
                low = value
            else:
                high = middle
        return low

    def next_larger(self, low: int) -> int | None:
        """Return the next accepted value that trains more, or ``None`` where there is none."""
        values = range(low + 1, low + 1 + WINDOW)
        return next((v for v in values if isinstance(count := self._look(v), int) and count > self[low]), None)


class _Mix:
    """Some layers at the higher knob value, the others at the lower: every total that this can make.

    Layers with the same step are alike, so a total is decided by how many of each kind are raised: an exact, bounded
    subset sum, kept as one bit per total (in units of the steps' common divisor).
    """

    def __init__(
        self, method: type[Method], config: Any, knob: str, low: int, high: int,
        layers: Mapping[str, tuple[int, int]], context: TrialContext,
    ) -> None:  # fmt: skip
        self._low, self._knob, self._high, self._layers = replace(config, **{knob: low}), knob, high, layers
        methods = [method(method.resolve(replace(config, **{knob: value}), context)) for value in (low, high)]
        counts = {shape: [count_on_layer(each, shape) for each in methods] for shape in set(layers.values())}
        self._base = sum(counts[shape][0] for shape in layers.values())
        self._kinds: dict[int, list[str]] = {}
        for name, shape in layers.items():
            step = counts[shape][1] - counts[shape][0]
            if step > 0:
                self._kinds.setdefault(step, []).append(name)
        self._unit = math.gcd(*self._kinds)
        self._reached = [1]  # after each kind; bit s: a total of s units above the base can be made
        for step, names in self._kinds.items():
            bits, left, part = self._reached[-1], len(names), 1
            while left:  # 1, 2, 4, ... layers at a time make every number of layers
                part = min(part, left)
                bits |= bits << (part * step // self._unit)
                left, part = left - part, part * 2
            self._reached.append(bits)

    def nearest(self, budget: int) -> list[int]:
        """Return the nearest totals on both sides of a budget, or the two nearest where one side is empty."""
        bits, place = self._reached[-1], (budget - self._base) // self._unit
        if place < 0:
            second = bits & ~1
            return [self._base, self._base + ((second & -second).bit_length() - 1) * self._unit]
        place = min(place, bits.bit_length())  # of what is beyond every total, no mask of its length
        below = (bits & ((1 << (place + 1)) - 1)).bit_length() - 1
        above = bits >> (below + 1)
        totals = [below] if not above else [below, below + (above & -above).bit_length()]
        return [self._base + each * self._unit for each in totals]

    def solution(self, total: int) -> Solution:
        """Return the settings that make a total; of each kind, the raised layers are spread evenly over the depth."""
        rest, raised = (total - self._base) // self._unit, set[str]()
        for before, (step, names) in reversed(list(zip(self._reached[:-1], self._kinds.items(), strict=True))):
            units = step // self._unit
            number = next(n for n in range(len(names) + 1) if n * units <= rest and before >> (rest - n * units) & 1)
            rest -= number * units
            raised |= {names[(2 * place + 1) * len(names) // (2 * number)] for place in range(number)}
        settings = {name: {self._knob: self._high} for name in self._layers if name in raised}
        return Solution(self._low, settings, total)
