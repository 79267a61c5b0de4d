"""Every registered method, a stranger's included, passes the conformance kit."""

from __future__ import annotations

from harness.planning.registry import build_registry
from harness.testing import parametrize_with_checks

METHODS = build_registry().methods

# {method: {check: reason}}: strict, so it only shrinks.
EXPECTED_FAILED_CHECKS: dict[str, dict[str, str]] = {}


def test_there_are_methods_to_check():
    """An empty registry would make the test below pass by having no cases."""
    assert "lora" in METHODS, "no built-in method is registered: install the project first (pip install -e .)"


@parametrize_with_checks(METHODS.values(), EXPECTED_FAILED_CHECKS)
def test_method_conforms(method, check):
    check(method)
