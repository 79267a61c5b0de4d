"""What a check is: how it is registered, when it applies, and how it fails.

A check is a function of a method: an instance, or a class, then built from ``traits.check_config``. It
returns nothing, or raises ``CheckFailed``. One that cannot apply, e.g. merging where ``traits.mergeable`` is false,
does nothing; ``why_not`` says so. Nothing here knows a method by name: what it needs, its traits say.

What is not here: the checks, of what a method says (``declared``), of its training (``trained``, ``whole``), and of
what the harness does with its adapters (``packed``).
"""

from __future__ import annotations

import functools
import random
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from harness.contract.method import Method, MethodTraits, attaches
from harness.errors import HarnessError

Subject = Method | type[Method]
Check = Callable[[Subject], None]

TOLERANCE = 1e-6  # relative, in float64: rounding is far below, a wrong formula far above

registered: list[Check] = []
_conditions: dict[str, Callable[[type[Method]], str | None]] = {}


class CheckFailed(AssertionError):
    """A method breaks its contract.

    Attributes:
        method: The method's name.
        check: Name of the check.
    """

    def __init__(self, method: str, check: str, saw: str, advice: str) -> None:
        super().__init__(f"method {method!r} fails {check}: {saw}. Try: {advice}.")
        self.method, self.check = method, check

    @classmethod
    def together(cls, failures: Sequence[CheckFailed]) -> CheckFailed:
        """Return one failure that tells of several."""
        first = failures[0]
        whole = cls(first.method, ", ".join(each.check for each in failures), "", "")
        whole.args = ("\n".join(map(str, failures)),)
        return whole


class Seen(Exception):
    """What a check saw; becomes a ``CheckFailed``."""


def expect(holds: bool, saw: str, advice: str) -> None:
    """Fail the check that is running, unless ``holds``: say what was seen and what to try."""
    if not holds:
        raise Seen(saw, advice)


def build(method: Subject) -> Method:
    """Return an instance: a class is built from its ``traits.check_config``."""
    return method(method.Config(**method.traits.check_config)) if isinstance(method, type) else method


def name_of(method: Subject) -> str:
    """Return the method's name, or its class's where it has none."""
    return str(getattr(method, "name", class_of(method).__qualname__))


def why_not(check: Check, method: Subject) -> str | None:
    """Return why a check does not apply to a method, or ``None`` where it does."""
    kind = class_of(method)
    # Without proper traits nothing can be left out; check_declares_name_paper_config says what is wrong.
    return _conditions[check.__name__](kind) if isinstance(kind.traits, MethodTraits) else None


def class_of(method: Subject) -> type[Method]:
    """Return a method's class."""
    return method if isinstance(method, type) else type(method)


def always(kind: type[Method]) -> str | None:
    """Apply to every method."""
    return None


def on_adapters(kind: type[Method]) -> str | None:
    """Apply to methods that live on linear layers."""
    return "it attaches to the whole model" if attaches(kind) else None


def if_trains(kind: type[Method]) -> str | None:
    """Apply to methods that have parameters of their own."""
    return None if kind.traits.trains else "traits.trains is False"


def if_mergeable(kind: type[Method]) -> str | None:
    """Apply to adapters that can be merged into the weight."""
    return on_adapters(kind) or (None if kind.traits.mergeable else "traits.mergeable is False")


def if_identity(kind: type[Method]) -> str | None:
    """Apply to methods that start at the pretrained model."""
    return None if kind.traits.identity_at_init else "traits.identity_at_init is False"


def if_knob(kind: type[Method]) -> str | None:
    """Apply to methods whose size can be chosen."""
    return None if kind.traits.budget_knob else "traits.budget_knob is None"


def _place(error: Exception, kind: type[Method]) -> str:
    """Return the last line of the method's own file that an error went through, or of any; none of our own words."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == getattr(sys.modules.get(kind.__module__), "__file__", "")]
    if isinstance(error, HarnessError) and not own:
        return ""
    last = (own or frames)[-1]
    return f" ({Path(last.filename).name}, line {last.lineno})"


def check(
    condition: Callable[[type[Method]], str | None] = always,
    *,
    of_class: bool = False,
    if_raised: str = "looking at that line",
) -> Callable[[Callable[[Any], None]], Check]:
    """Register a check and give its failures one form.

    Args:
        condition: Returns why the check does not apply, or ``None``.
        of_class: The check looks at the class, which may be too broken to build.
        if_raised: What to try if the method raises an error of its own.
    """

    def register(function: Callable[[Any], None]) -> Check:
        @functools.wraps(function)
        def run(method: Subject) -> None:
            if why_not(run, method):
                return
            try:
                function(class_of(method) if of_class else build(method))
            except Seen as seen:
                saw, advice = seen.args
                raise CheckFailed(name_of(method), function.__name__, saw, advice) from None
            except Exception as error:
                # Whatever a method raises here is the method's fault, and is reported as such.
                saw = f"it raised {type(error).__name__}: {error}{_place(error, class_of(method))}"
                raise CheckFailed(name_of(method), function.__name__, saw, if_raised) from error

        registered.append(run)
        _conditions[function.__name__] = condition
        return run

    return register


def is_close(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Return whether two tensors agree relative to the largest value expected. NaN never agrees."""
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    if actual.shape != expected.shape:
        return False
    return bool((actual - expected).abs().max() <= tolerance * max(scale, 1e-3))


def difference(actual: Tensor, expected: Tensor) -> str:
    """Describe how two tensors disagree."""
    if actual.shape != expected.shape:
        return f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    return f"largest difference {float((actual - expected).abs().max()):.2g}"


def some(names: list[str]) -> str:
    """List the first few names."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def global_randomness() -> tuple[Any, ...]:
    """Return the states of the global random streams of torch, NumPy and Python, comparable with ``==``."""
    name, keys, *rest = cast("tuple[Any, ...]", np.random.get_state(legacy=True))  # noqa: NPY002 - the global one
    return torch.get_rng_state().numpy().tobytes(), (name, keys.tobytes(), *rest), random.getstate()
