"""``harness verify``: digests, recomputed numbers, and a trial trained again."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from harness.cli import app
from harness.results.store import Store

SMALL = ["--task", "uuid", "--seeds", "1", "--steps", "2", "--set", "pairs=2", "--set", "batch_size=2"]


@pytest.fixture(scope="module")
def root(trouble, tmp_path_factory):
    root = tmp_path_factory.mktemp("verify") / "results"
    quick = ["--budget", "quick", "--workers", "1", "--device", "cpu", "--no-mlflow", "--methods", "quick"]
    done = CliRunner().invoke(app, ["run", *quick, *SMALL, "--results", str(root)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return root


def test_a_root_is_verified(root, command):
    done = command("verify", str(root))
    assert done.code == 0
    assert "  sound\n" in done.out
    assert "recomputed from" in done.out
    assert "1 records, 0 not to be believed" in done.err


def test_a_trial_is_trained_again_and_comes_out_the_same(root, command):
    (record,) = Store(str(root)).records()
    done = command("verify", str(root / f"{record.trial_id}.json"), "--retrain", "--device", "cpu")
    assert "  reproduced\n" in done.out
    assert "again, to the last digit" in done.out
    assert done.code == 0


def test_an_edited_record_is_named_and_not_trained(root, command, tmp_path):
    (record,) = Store(str(root)).records()
    path = tmp_path / f"{record.trial_id}.json"
    path.write_text(record.dumps().replace('"higher_is_better": true', '"higher_is_better": false', 1))
    done = command("verify", str(path), "--retrain")
    assert done.code == 1
    assert f"{record.trial_id}  edited" in done.out
    assert "reproduced" not in done.out


def test_mistakes_are_named(root, command, tmp_path):
    assert "no records in" in command("verify", str(tmp_path)).err
    missing = command("verify", str(tmp_path / "0123456789abcdef.json"))
    assert (missing.code, "there is no record" in missing.err) == (2, True)
    (record,) = Store(str(root)).records()
    Store(str(tmp_path)).write(record)
    other = tmp_path / "0123456789abcdef.json"
    other.write_text("{}")
    done = command("verify", str(tmp_path), "--retrain")
    assert done.code == 2
    assert "--retrain trains one trial" in done.err


def test_what_is_not_the_record_s_here_is_no_trial_that_did_not_come_out_again(command, tmp_path):
    data, other = tmp_path / "data", tmp_path / "other"
    for folder, word in ((data, "text"), (other, "words")):
        folder.mkdir()
        rows = "".join(f"{word} {number},{'ab'[number % 2]}\n" for number in range(40))
        (folder / "mine.csv").write_text("text,label\n" + rows)
    results, small = tmp_path / "results", ["--steps", "1", "--set", "batch_size=1", "--seeds", "1", "--no-mlflow"]
    own = ["--data", str(data / "mine.csv"), "--methods", "lora", "--device", "cpu"]
    assert command("run", *own, *small, "--results", str(results)).code == 0
    (record,) = Store(str(results)).records()
    again = ["verify", str(results / f"{record.trial_id}.json"), "--retrain", "--device", "cpu"]
    missing, changed = command(*again), command(*again, "--data-dir", str(other))
    assert (missing.code, changed.code) == (2, 2)
    assert "with <data dir>/mine.csv\n" in missing.err
    assert "its data is not here, so it cannot be trained again: the record has mine.csv sha256:" in changed.err
    assert "reproduced" not in missing.out + changed.out
