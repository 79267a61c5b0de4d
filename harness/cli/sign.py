"""``harness sign``: vouch for the records of a root, for those who get them."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("root", default="results")
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    required=True,
    help="Your SSH key: the private one, or the public one of an agent's.",
)
def sign(root: str, key: Path) -> int:
    """Sign the records of ROOT with an SSH key; `harness verify ROOT --signers FILE` checks it."""
    from harness.results.signing import sign as sign_records
    from harness.results.store import Store

    name, count = sign_records(Store(root), key)
    click.echo(f"{count} records signed: {name} and its .sig in {root}")
    return 0
