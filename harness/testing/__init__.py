"""The conformance kit: hold any method, yours or a built-in one, to the contract of ``harness.Method``.

In a test file, one pytest case per method and check:

    from harness.testing import parametrize_with_checks

    @parametrize_with_checks([MyMethod])
    def test_my_method_conforms(method, check):
        check(method)

Or all at once, anywhere: ``check_method(MyMethod)``. They train on a tiny model on the CPU, a second or two
in all. What a method needs there, e.g. a short merge period, it says in ``traits.check_config``.

What is not here: whether a method reproduces its paper. That is for its own tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import UsageError
from harness.testing.contract import CheckFailed as CheckFailed
from harness.testing.contract import Subject, name_of, registered, why_not
from harness.testing.declared import check_bad_config_is_named as check_bad_config_is_named
from harness.testing.declared import check_budget_knob_is_monotone as check_budget_knob_is_monotone
from harness.testing.declared import check_builds_and_runs as check_builds_and_runs
from harness.testing.declared import check_declares_name_paper_config as check_declares_name_paper_config
from harness.testing.declared import check_init_only_stores as check_init_only_stores
from harness.testing.declared import (
    check_trainable_count_matches_formula as check_trainable_count_matches_formula,
)
from harness.testing.packed import check_forward_is_pure as check_forward_is_pure
from harness.testing.packed import check_half_precision as check_half_precision
from harness.testing.packed import check_leading_shapes as check_leading_shapes
from harness.testing.packed import check_merge_preserves_output as check_merge_preserves_output
from harness.testing.packed import check_odd_shapes as check_odd_shapes
from harness.testing.packed import check_stacks_under_vmap as check_stacks_under_vmap
from harness.testing.packed import check_state_round_trip as check_state_round_trip
from harness.testing.trained import check_different_seed_differs as check_different_seed_differs
from harness.testing.trained import check_every_trainable_tensor_moves as check_every_trainable_tensor_moves
from harness.testing.trained import check_global_rng_untouched as check_global_rng_untouched
from harness.testing.trained import check_identity_at_init as check_identity_at_init
from harness.testing.trained import check_loss_falls as check_loss_falls
from harness.testing.trained import check_only_declared_tensors_move as check_only_declared_tensors_move
from harness.testing.trained import check_optimizer_hooks as check_optimizer_hooks
from harness.testing.trained import check_pretrained_model_untouched as check_pretrained_model_untouched
from harness.testing.trained import check_same_seed_same_weights as check_same_seed_same_weights
from harness.testing.trained import check_tensors_change_in_place as check_tensors_change_in_place
from harness.testing.trained import check_tensors_stay_finite as check_tensors_stay_finite
from harness.testing.whole import check_attached_count_without_weights as check_attached_count_without_weights
from harness.testing.whole import check_attached_decodes_with_a_cache as check_attached_decodes_with_a_cache
from harness.testing.whole import check_attached_half_precision as check_attached_half_precision
from harness.testing.whole import check_attached_merge_preserves_output as check_attached_merge_preserves_output
from harness.testing.whole import check_attached_output_is_the_texts as check_attached_output_is_the_texts
from harness.testing.whole import check_attached_state_round_trip as check_attached_state_round_trip

if TYPE_CHECKING:
    import pytest


ALL_CHECKS = tuple(registered)


@dataclass(frozen=True)
class CheckResult:
    """What came of one check.

    Attributes:
        method: The method's name.
        check: The check's name.
        state: ``passed``, ``failed`` or ``not applicable``.
        reason: Why it failed or does not apply; empty where it passed.
    """

    method: str
    check: str
    state: str
    reason: str = ""


def check_method(method: Subject, on_result: Callable[[CheckResult], None] | None = None) -> None:
    """Run every check that applies to a method.

    Args:
        method: A method, or its class, which is then built from ``traits.check_config``.
        on_result: Called with the outcome of each check as it is known.

    Raises:
        CheckFailed: At least one check failed; the message has all of them. A method whose declarations are
            wrong, or which does not run, is not checked further.
    """
    failures: list[CheckFailed] = []
    for check in ALL_CHECKS:
        state, reason = "passed", why_not(check, method) or ""
        if reason:
            state = "not applicable"
        else:
            try:
                check(method)
            except CheckFailed as failure:
                failures.append(failure)
                state, reason = "failed", str(failure)
        if on_result:
            on_result(CheckResult(name_of(method), check.__name__, state, reason))
        if failures and check in (check_declares_name_paper_config, check_builds_and_runs):
            break
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise CheckFailed.together(failures)


def parametrize_with_checks(
    methods: Iterable[Subject], expected_failed_checks: Mapping[str, Mapping[str, str]] | None = None
) -> pytest.MarkDecorator:
    """Return a decorator that gives a test of ``(method, check)`` one case per method and check that applies.

    Args:
        methods: Methods or their classes.
        expected_failed_checks: ``{method name: {check name: reason}}``, failures that are known. They
            are strict: a check that passes after all fails its case, so the list only shrinks.

    Raises:
        UsageError: ``expected_failed_checks`` names a method or check that is not run.
    """
    import pytest  # only here: the kit works without pytest

    excused = {(method, check) for method, each in (expected_failed_checks or {}).items() for check in each}
    cases = []
    for method in methods:
        name = name_of(method)
        for check in ALL_CHECKS:
            if why_not(check, method):
                continue
            marks = []
            if (name, check.__name__) in excused:
                excused.remove((name, check.__name__))
                reason = (expected_failed_checks or {})[name][check.__name__]
                marks.append(pytest.mark.xfail(reason=reason, raises=CheckFailed, strict=True))
            cases.append(pytest.param(method, check, id=f"{name}-{check.__name__}", marks=marks))
    if excused:
        listed = ", ".join(sorted(f"{method}: {check}" for method, check in excused))
        advice = "remove it or correct its spelling"
        raise UsageError(f"expected_failed_checks names what is not run: {listed}; {advice}")
    return pytest.mark.parametrize(("method", "check"), cases)
