"""``harness check``: does a method keep the contract? The checks themselves are in ``harness.testing``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from harness.testing import CheckResult


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def check(block: tuple[str, ...], name: str, as_json: bool) -> int:
    """Hold a method to the contract: run the conformance kit on it."""
    from harness.planning.registry import build_registry
    from harness.testing import CheckFailed, check_method

    method = build_registry(block).method(name)

    found: list[CheckResult] = []

    def show(result: CheckResult) -> None:
        found.append(result)
        if as_json:
            return
        click.echo(f"{result.state:14}  {result.check}" + (f"\n{' ' * 16}{result.reason}" if result.reason else ""))

    try:
        check_method(method, on_result=show)
    except CheckFailed:
        if as_json:
            click.echo(_as_json(name, found))
            return 1
        click.echo(f"{name}: does not keep the contract", err=True)
        return 1
    click.echo(_as_json(name, found) if as_json else f"{name}: all checks passed")
    return 0


def _as_json(name: str, found: Sequence[CheckResult]) -> str:
    checks = [{"check": each.check, "state": str(each.state), "reason": each.reason} for each in found]
    return json.dumps({"method": name, "checks": checks}, indent=1)
