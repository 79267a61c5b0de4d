"""Records that somebody vouches for: signed with a key, and told apart from unsigned and wrongly signed ones."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess

import pytest

from harness.errors import HarnessError, UsageError
from harness.results.signing import read_signatures, sign
from harness.results.store import Store
from harness.results.verify import verify

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Two throwaway keys, and a file of allowed signers that knows the first."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (folder / "signers").write_text(f"ada@example.org {(folder / 'ours.pub').read_text()}")
    return folder


@pytest.fixture
def store(tmp_path, make_record, make_trial):
    store = Store(str(tmp_path / "results"))
    store.prepare()
    for seed in (0, 1):
        store.write(make_record(make_trial(seed=seed)))
    return store


def verdicts(store, keys):
    signatures = read_signatures(store, keys / "signers")
    ids = sorted(store.ids())
    return [found.verdict for found in verify(store, ids, signatures=signatures)], signatures


def test_a_signed_record_is_sound_and_says_by_whom(store, keys):
    name, count = sign(store, keys / "ours")
    assert count == 2
    assert store.read_artifact(f"{name}.sig").startswith(b"-----BEGIN SSH SIGNATURE-----")
    found, signatures = verdicts(store, keys)
    assert found == ["sound", "sound"]
    first = next(verify(store, sorted(store.ids()), signatures=signatures))
    assert first.notes[0] == "signed by ada@example.org"


def test_what_came_after_the_signature_is_unsigned(store, keys, make_record, make_trial):
    sign(store, keys / "ours")
    later = make_record(make_trial(seed=2))
    store.write(later)
    signatures = read_signatures(store, keys / "signers")
    assert [each.verdict for each in verify(store, [later.trial_id], signatures=signatures)] == ["unsigned"]


def test_a_record_that_was_changed_with_its_digest_is_wrongly_signed(store, keys):
    """Whoever changes a record can make a new digest, and no new signature."""
    sign(store, keys / "ours")
    record = next(store.records())
    better = dataclasses.replace(record, metrics={**record.metrics, "accuracy": 1.0}, items={"accuracy": [1.0] * 4})
    (store.local / f"{record.trial_id}.json").write_text(better.dumps())
    assert next(verify(store, [record.trial_id])).verdict == "sound", "which is what the digest alone can say"
    assert sorted(verdicts(store, keys)[0]) == ["sound", "wrongly signed"]


@pytest.mark.parametrize("how", ["unknown key", "changed manifest", "other namespace", "no signature"])
def test_a_signature_that_is_not_valid_vouches_for_nothing_and_is_named(store, keys, tmp_path, how):
    name, _ = sign(store, keys / ("theirs" if how == "unknown key" else "ours"))
    file = store.local / name
    if how == "changed manifest":
        file.write_text(file.read_text() + " ")
    elif how == "no signature":
        file.with_suffix(".json.sig").unlink()
    elif how == "other namespace":
        file.with_suffix(".json.sig").unlink()
        subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-f", keys / "ours", "-n", "file", file], check=True)
    found, signatures = verdicts(store, keys)
    assert found == ["unsigned", "unsigned"]
    assert len(signatures.problems) == 1
    assert signatures.problems[0].startswith(f"{name}: ")


def test_mistakes_are_named(store, keys, tmp_path):
    with pytest.raises(UsageError, match=r"--key '.*none' does not exist; make one: ssh-keygen -t ed25519"):
        sign(store, tmp_path / "none")
    (tmp_path / "junk").write_text("no key")
    with pytest.raises(HarnessError, match="junk' cannot sign: "):
        sign(store, tmp_path / "junk")
    with pytest.raises(UsageError, match="no records in"):
        sign(Store(str(tmp_path / "empty")), keys / "ours")
    with pytest.raises(UsageError, match=r"--signers '.*none' does not exist; write one line"):
        read_signatures(store, tmp_path / "none")
    record = next(store.records())
    (store.local / f"{record.trial_id}.json").write_text(record.dumps().replace("0.75", "0.99", 1))
    with pytest.raises(UsageError, match="was edited; nobody should vouch for it"):
        sign(store, keys / "ours")
