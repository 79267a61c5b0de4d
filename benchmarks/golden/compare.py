"""Whether a change left behaviour alone: the records of one sweep before and after it, equal but for times and ids.

    python benchmarks/golden/compare.py ../before .
    python benchmarks/golden/compare.py old-results new-results
    python benchmarks/golden/compare.py ../before . -- --methods lora --task glue --data-dir data

Each side is a result root, or a checkout with an environment of its own in ``.venv``, where the sweep is then run: the
main job with one seed, or what follows ``--``. Exits with 1 where anything differs, and says what and where. Run both
sides on one machine: another processor rounds otherwise.

Only files are read, so that any two states of the project can be compared. What only one side says is listed and is no
difference: a record may learn to say more.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

MAIN_JOB = ("--methods", "all", "--task", "uuid", "--seeds", "1")
ASKED = ("task", "model", "method", "budget", "learning_rate", "seed", "purpose")
# Times, memory, machine and source, and what is derived from them.
OF_THE_RUN = {"trial_id", "digest", "started_at", "finished_at", "environment", "cost", "attempts", "artifacts"}
OF_THE_SOURCE = {"plugins", "format"}
FAILED_TRIALS = 4  # the exit code: these are compared like others


def main(arguments: Sequence[str]) -> int:
    """Compare two sides, print what differs, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("options", nargs="*", default=MAIN_JOB, help="of `harness run`, after --")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        sides = {"before": asked.before, "after": asked.after}
        before, after = (read(results(side, Path(folder) / name, asked.options)) for name, side in sides.items())
    changed = [f"{key}: no such trial on one side" for key in before.keys() ^ after.keys()]
    added = set()
    for key in before.keys() & after.keys():
        more, other = compare(before[key], after[key])
        added |= more
        changed += [f"{key}: {line}" for line in other]
    words = [*(f"said on one side only: {field}" for field in sorted(added)), *sorted(changed)]
    words.append(f"{len(before.keys() & after.keys())} trials on both sides, {len(changed)} differences")
    sys.stdout.write("\n".join(words) + "\n")
    return 1 if changed else 0


def compare(before: Any, after: Any) -> tuple[set[str], list[str]]:
    """Return the fields that only one record has, and for every other that differs the first place where it does."""
    sides = [{place: (field, value) for place, field, value in leaves(each)} for each in (before, after)]
    fields = [{field for field, _ in each.values()} for each in sides]
    found: dict[str, list[str]] = {}
    for place in dict.fromkeys([*sides[0], *sides[1]]):
        old, new = (side.get(place) for side in sides)
        field = (old or new or ("",))[0]
        if old != new and field in fields[0] & fields[1]:
            said = ("nothing" if each is None else repr(each[1]) for each in (old, new))
            found.setdefault(field, []).append(f"{place}: {' -> '.join(said)}")
    more = {field: f" and {len(places) - 1} more" if len(places) > 1 else "" for field, places in found.items()}
    return fields[0] ^ fields[1], [places[0] + more[field] for field, places in found.items()]


def leaves(value: Any, place: str = "", field: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield what stands in a record: its place, the field's name, which is one for a whole list, and the value."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from leaves(each, f"{place}.{name}".removeprefix("."), f"{field}.{name}".removeprefix("."))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from leaves(each, f"{place}[{number}]", field)
    else:
        yield place, field, value


def results(side: Path, folder: Path, options: Sequence[str]) -> Path:
    """Return a side's result root: itself, or what its own sweep leaves in a folder."""
    command = (side / ".venv/bin/harness").absolute()
    if not command.exists():
        return side
    whole = [command, "run", *options, "--device", "cpu", "--no-mlflow", "-q", "--results", folder]
    code = subprocess.run(whole, stdout=sys.stderr).returncode  # noqa: S603  what the user asked for
    if code not in (0, FAILED_TRIALS):
        sys.exit(f"the sweep of {side} ended with exit code {code}")
    return folder


def read(root: Path) -> dict[str, Any]:
    """Return ``{what was asked: what came of it}``, with a digest of an adapter's values in the place of its file."""
    found: dict[str, Any] = {}
    for path in sorted(root.glob("*.json")):
        record = json.loads(path.read_text())
        adapter = record.get("artifacts", {}).get("adapter")
        kept = {name: value for name, value in record.items() if name not in OF_THE_RUN}
        kept["trial"] = {name: value for name, value in record["trial"].items() if name not in OF_THE_SOURCE}
        tensors = load_file(root / adapter) if adapter else {}
        kept["adapter"] = [f"{name}: {sha256(values.tobytes()).hexdigest()[:8]}" for name, values in tensors.items()]
        key = "/".join(str(record["trial"].get(name)) for name in ASKED)
        while key in found:  # the same method with other settings; a change may have renamed these
            key += "'"
        found[key] = kept
    if not found:
        sys.exit(f"{root} has no records, and is no checkout with an environment in .venv")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
