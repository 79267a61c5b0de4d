"""Signatures of results that travel: who vouches for which records, checked with OpenSSH's keys.

<root>/signatures/<hash>.json         a manifest: trial ids and the digests of their records
<root>/signatures/<hash>.json.sig     its signature, as ``ssh-keygen -Y sign`` makes it, in the namespace "harness"

A record's own digest shows that it was changed, but whoever changes a record can make a new digest. A signature
cannot be made without the key.

What is not here: what else a record is worth (``verify``). Adapters are not signed, nor is anything made from records.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.contract.record import Record, State, digest, loads
from harness.errors import HarnessError, RecordError, UsageError
from harness.results.store import Store

FOLDER = "signatures"
NAMESPACE = "harness"  # so that a signature made for something else says nothing here
FORMAT = 1


def sign(store: Store, key: Path) -> tuple[str, int]:
    """Sign all records of a root; return the manifest's name and how many there are.

    Args:
        store: Where they are, and where manifest and signature go.
        key: A private SSH key, or the public one of a key that an agent holds.

    Raises:
        UsageError: There is no record or no key, or a record is not what was written.
        HarnessError: The key cannot sign.
    """
    if not key.is_file():
        raise UsageError(f"--key {str(key)!r} does not exist; make one: ssh-keygen -t ed25519 -f {key}")
    digests = {}
    for record in store.records():
        if record.state is State.EDITED:
            raise UsageError(f"record {record.trial_id} was edited; nobody should vouch for it: move it away")
        digests[record.trial_id] = digest_of(record)
    if not digests:
        raise UsageError(f"no records in {store.root!r} to sign")
    text = json.dumps({"format": FORMAT, "records": digests}, indent=1, sort_keys=True) + "\n"
    name = f"{FOLDER}/{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    with tempfile.TemporaryDirectory(prefix="harness-sign-") as folder:
        manifest = Path(folder) / "manifest.json"
        manifest.write_text(text)
        done = _ssh_keygen("sign", "-f", key.resolve(), "-n", NAMESPACE, manifest)
        signature = manifest.with_suffix(".json.sig")
        if done.returncode or not signature.is_file():
            raise HarnessError(f"--key {str(key)!r} cannot sign: {_said(done)}")
        store.write_artifact(name, text.encode())
        store.write_artifact(f"{name}.sig", signature.read_bytes())
    return name, len(digests)


@dataclass(frozen=True)
class Signatures:
    """What valid signatures of a root vouch for.

    Attributes:
        signers: By trial id and digest, who signed it.
        problems: Signatures that are not valid, one line each.
    """

    signers: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    problems: Sequence[str] = ()

    def verdict(self, record: Record) -> tuple[str, str]:
        """Return ``""``, ``unsigned`` or ``wrongly signed``, and a note for people."""
        known = self.signers.get(record.trial_id, {})
        if who := known.get(digest_of(record)):
            return "", f"signed by {', '.join(who)}"
        if known:
            others = sorted({name for names in known.values() for name in names})
            return "wrongly signed", f"{', '.join(others)} signed another content of this record"
        return "unsigned", "no valid signature vouches for it"


def read_signatures(store: Store, signers: Path) -> Signatures:
    """Return what the signatures of a root say, as far as they are of known signers.

    Args:
        store: Where records and signatures are.
        signers: OpenSSH's file of allowed signers: a name and a public key on each line.

    Raises:
        UsageError: There is no such file.
    """
    if not signers.is_file():
        raise UsageError(
            f"--signers {str(signers)!r} does not exist; write one line for each: NAME ssh-ed25519 AAAA... "
            "(a name, and the content of the key's .pub file)"
        )
    found: dict[str, dict[str, list[str]]] = {}
    problems = []
    for name in store.artifacts(FOLDER):
        try:
            text = store.read_artifact(name)
            who = _signer(text, store.read_artifact(f"{name}.sig"), signers)
            records = _records_of(text)
        except (OSError, RecordError) as error:
            problems.append(f"{name}: {error}")
            continue
        for trial_id, each in records.items():
            found.setdefault(trial_id, {}).setdefault(each, []).append(who)
    return Signatures(found, problems)


def digest_of(record: Record) -> str:
    """Return the digest of a record's content, also of one of a schema that did not hold it."""
    content = record.to_json()
    content.pop("digest", None)
    return digest(content)


def _records_of(text: bytes) -> Mapping[str, str]:
    """Return what a manifest lists."""
    try:
        manifest = loads(text)
    except ValueError as error:
        raise RecordError(f"it is no manifest: {error}") from error
    records = manifest.get("records") if isinstance(manifest, dict) and manifest.get("format") == FORMAT else None
    if not isinstance(records, dict) or not all(isinstance(each, str) for each in records.values()):
        raise RecordError(f"it is no manifest of format {FORMAT}")
    return records


def _signer(text: bytes, signature: bytes, signers: Path) -> str:
    """Return who signed a text; ``RecordError`` if nobody that we know did."""
    with tempfile.TemporaryDirectory(prefix="harness-verify-") as folder:
        file = Path(folder) / "signature"
        file.write_bytes(signature)
        named = _ssh_keygen("find-principals", "-s", file, "-f", signers)
        reasons = [_said(named)] if named.returncode else []
        for who in named.stdout.decode(errors="replace").splitlines():
            done = _ssh_keygen("verify", "-f", signers, "-I", who, "-n", NAMESPACE, "-s", file, given=text)
            if done.returncode == 0:
                return who
            reasons.append(_said(done))
        raise RecordError(f"not a valid signature of any of {str(signers)!r}: {'; '.join(filter(None, reasons))}")


def _ssh_keygen(what: str, *arguments: Any, given: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("ssh-keygen")
    if program is None:
        raise UsageError("signatures need ssh-keygen, which is not installed here; it comes with OpenSSH")
    command = [program, "-Y", what, *map(str, arguments)]
    return subprocess.run(command, input=given, capture_output=True, check=False)  # noqa: S603


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    return " ".join((done.stderr + b" " + done.stdout).decode(errors="replace").split())
