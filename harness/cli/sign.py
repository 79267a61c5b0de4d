"""``harness sign``: vouch for the records of a root, for those who get them."""

from __future__ import annotations

import json
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
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def sign(root: str, key: Path, as_json: bool) -> int:
    """Sign the records of ROOT with an SSH key; `harness verify ROOT --signers FILE` checks it."""
    from harness.results.signing import sign as sign_records
    from harness.results.store import Store

    name, count = sign_records(Store(root), key)
    if as_json:
        click.echo(json.dumps({"root": root, "records": count, "files": [name, f"{name}.sig"]}, indent=1))
    else:
        click.echo(f"{count} records signed: {name} and its .sig in {root}")
    return 0
