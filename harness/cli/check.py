"""``harness check``: does a method keep the contract? The checks themselves are in ``harness.testing``."""

from __future__ import annotations

import click


@click.command()
@click.argument("name")
@click.pass_obj
def check(block: tuple[str, ...], name: str) -> int:
    """Hold a method to the contract: run the conformance kit on it."""
    from harness.planning.registry import build_registry
    from harness.testing import CheckFailed, CheckResult, check_method

    method = build_registry(block).method(name)

    def show(result: CheckResult) -> None:
        click.echo(f"{result.state:14}  {result.check}" + (f"\n{' ' * 16}{result.reason}" if result.reason else ""))

    try:
        check_method(method, on_result=show)
    except CheckFailed:
        click.echo(f"{name}: does not keep the contract", err=True)
        return 1
    click.echo(f"{name}: all checks passed")
    return 0
