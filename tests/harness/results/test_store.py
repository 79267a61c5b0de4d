"""The result root: written once, whole or not at all, on a folder and on any fsspec URL."""

from __future__ import annotations

import dataclasses
import gzip
import os
import uuid

import pytest

from harness.contract.record import State
from harness.errors import RecordError, UsageError
from harness.results.owner import this_machine, this_process
from harness.results.store import Store


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    root = str(tmp_path / "results") if request.param == "folder" else f"memory://{uuid.uuid4().hex}/results"
    store = Store(root)
    store.prepare()
    return store


@pytest.fixture
def folder(tmp_path):
    store = Store(str(tmp_path))
    store.prepare()
    return store


def test_records_come_back_in_order_of_id(store, make_record, make_trial):
    records = [make_record(make_trial(seed=seed)) for seed in range(5)]
    for record in records:
        store.write(record)
    assert store.ids() == {record.trial_id for record in records}
    assert list(store.records()) == sorted(records, key=lambda record: record.trial_id)
    assert store.read(records[3].trial_id) == records[3]


def test_an_empty_root_has_no_records(store):
    assert (store.ids(), list(store.records()), store.read("0" * 16)) == (set(), [], None)


def test_a_root_that_does_not_exist_has_no_records(tmp_path):
    assert Store(str(tmp_path / "nothing")).ids() == set()


def test_prepare_leaves_nothing_and_may_be_repeated(folder, tmp_path):
    folder.prepare()
    assert list(tmp_path.iterdir()) == []


def test_prepare_names_a_root_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UsageError, match=r"file/results.*--results"):
        Store(str(tmp_path / "file" / "results")).prepare()


@pytest.mark.parametrize("state", [state for state in State if state.is_final])
def test_a_final_record_is_never_overwritten(store, make_record, state):
    first = make_record(state=state)
    store.write(first)
    with pytest.raises(RecordError, match=f"{first.trial_id}.*{state}.*written once"):
        store.write(make_record(metrics={"accuracy": 0.99}))
    assert store.read(first.trial_id) == first


@pytest.mark.parametrize("state", [state for state in State if not state.is_final and state is not State.EDITED])
def test_a_record_that_is_not_final_is_replaced_and_remembered(store, make_record, state):
    first = make_record(state=state, metrics={}, error={"type": "E", "message": "first", "conditions": {"pack": 1}})
    second = make_record(state=state, metrics={}, error={"type": "E", "message": "second"})
    store.write(first)
    store.write(second)
    written = store.write(make_record())
    assert written.attempts == [first.attempt, second.attempt]
    assert store.read(written.trial_id) == written
    assert dataclasses.replace(written, attempts=[]) == make_record()


def test_an_edited_record_is_shown_as_edited_and_can_be_replaced(store, make_record):
    name = f"{make_record().trial_id}.json"
    text = make_record().dumps().replace('"accuracy": 0.75', '"accuracy": 0.99', 1)
    store.write_artifact(name, text.encode())
    assert store.read(make_record().trial_id).state is State.EDITED
    assert store.write(make_record()).attempts[0]["state"] == "edited"


@pytest.mark.parametrize("moment", ["while writing", "before the rename"])
def test_a_crash_leaves_the_old_record_and_no_half_of_the_new_one(folder, make_record, monkeypatch, moment):
    old = make_record(state=State.INTERRUPTED)
    folder.write(old)

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync" if moment == "while writing" else "pathlib.Path.replace", crash)
        with pytest.raises(KeyboardInterrupt):
            folder.write(make_record())
    assert list(Store(folder.root).records()) == [old]
    written = folder.write(make_record())  # and nothing is in the way of the next attempt
    assert list(folder.records()) == [written]
    assert written.attempts == [old.attempt]


def test_a_crash_of_the_first_write_leaves_no_record(folder, make_record, monkeypatch):
    def full(_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="disk full"):
            folder.write(make_record())
    assert folder.ids() == set()


@pytest.mark.parametrize("before", ["nothing", "interrupted"])
def test_no_reader_ever_sees_a_part_of_a_record(folder, make_record, monkeypatch, before):
    """At the moment that it gets its name, the file is already whole."""
    if before == "interrupted":
        folder.write(make_record(state=State.INTERRUPTED))
    seen = []
    link = os.link

    def look(source, target):
        seen.append(source.read_text())
        link(source, target)

    monkeypatch.setattr(os, "link", look)
    written = folder.write(make_record())
    assert seen[-1] == written.dumps()
    assert folder.read(make_record().trial_id) == written


@pytest.mark.parametrize("has_links", [True, False])
@pytest.mark.parametrize("before", ["nothing", "interrupted"])
def test_of_two_machines_that_finish_a_trial_at_once_the_first_counts(
    folder, make_record, monkeypatch, before, has_links
):
    if not has_links:
        monkeypatch.setattr(os, "link", unsupported)
    if before == "interrupted":
        folder.write(make_record(state=State.INTERRUPTED))
    first, second = make_record(metrics={"accuracy": 0.25}), make_record(metrics={"accuracy": 0.99})
    read, winners = Store.read, []

    def read_then_lose_the_race(store, trial_id):
        found = read(store, trial_id)
        monkeypatch.setattr(Store, "read", read)
        winners.append(Store(folder.root).write(first))
        return found

    monkeypatch.setattr(Store, "read", read_then_lose_the_race)
    with pytest.raises(RecordError, match="written once"):
        folder.write(second)
    assert list(folder.records()) == winners
    assert winners[0].score == 0.25
    assert [path.name for path in folder.local.iterdir()] == [f"{first.trial_id}.json"]


def unsupported(source, target):
    raise PermissionError("no links here")


def test_a_filesystem_without_hard_links_will_do(folder, make_record, monkeypatch):
    monkeypatch.setattr(os, "link", unsupported)
    folder.write(make_record())
    with pytest.raises(RecordError, match="written once"):
        folder.write(make_record())
    assert list(folder.records()) == [make_record()]


@pytest.mark.parametrize("call", ["pipe_file", "mv"])
def test_a_remote_write_that_fails_leaves_nothing(make_record, monkeypatch, call):
    store = Store(f"memory://{uuid.uuid4().hex}")
    store.prepare()
    done = getattr(store.filesystem, call)

    def fail(*arguments, **keywords):
        if call == "pipe_file":
            done(*arguments, **keywords)
        raise OSError("connection lost")

    with monkeypatch.context() as patch:
        patch.setattr(store.filesystem, call, fail)
        with pytest.raises(OSError, match="connection lost"):
            store.write(make_record())
    assert store.filesystem.ls(store.path, detail=False) == []
    store.write(make_record())
    assert list(store.records()) == [make_record()]


def test_files_of_other_names_are_no_records(store, make_record):
    store.write(make_record())
    store.write_artifact("export.json", b"[]")
    store.write_artifact("package.json", b"{}")
    assert list(store.records()) == [make_record()]


@pytest.mark.parametrize("root", ["nonsense://x/results", "abfs://container/results"])
def test_a_url_that_cannot_be_opened_is_named(root):
    with pytest.raises(UsageError, match=root):
        Store(root)


def test_artifacts_are_kept_beside_and_are_no_records(store):
    content = bytes(range(256))
    assert store.write_artifact("adapters/x.safetensors", content) == "adapters/x.safetensors"
    assert store.read_artifact("adapters/x.safetensors") == content
    assert store.ids() == set()
    store.write_artifact("adapters/x.safetensors", b"second attempt")
    assert store.read_artifact("adapters/x.safetensors") == b"second attempt"


def test_nothing_but_the_file_remains_after_a_write(store, make_record):
    store.write(make_record())
    names = [name.rsplit("/", 1)[-1] for name in store.filesystem.ls(store.path, detail=False)]
    assert names == [f"{make_record().trial_id}.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"schema_version": 1}', "\udcff"])
def test_a_broken_file_is_named(store, make_record, text):
    name = make_record().trial_id
    store.write_artifact(f"{name}.json", text.encode(errors="surrogateescape"))
    with pytest.raises(RecordError, match=rf"{name}\.json: .*Move it away"):
        store.read(name)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", '"abc"'])
def test_a_value_that_is_no_number_is_named_with_its_file(store, make_record, number):
    record = make_record()
    text = record.dumps().replace('"train_seconds": 12.5', f'"train_seconds": {number}')
    assert text != record.dumps()
    store.write_artifact(f"{record.trial_id}.json", text.encode())
    with pytest.raises(RecordError, match=rf"{record.trial_id}\.json: .*(is not a number|cost.train_seconds=)"):
        store.read(record.trial_id)


def test_an_edited_file_is_refused(store, make_record):
    record = make_record()
    text = record.dumps().replace('"learning_rate": 0.001', '"learning_rate": 0.1')
    assert text != record.dumps()
    store.write_artifact(f"{record.trial_id}.json", text.encode())
    with pytest.raises(RecordError, match="was edited"):
        store.read(record.trial_id)


def test_a_gzipped_record_counts_as_written(store, make_record):
    record = make_record()
    store.write_artifact(f"{record.trial_id}.json.gz", gzip.compress(record.dumps().encode()))
    assert (store.ids(), store.read(record.trial_id)) == ({record.trial_id}, record)
    with pytest.raises(RecordError, match="written once"):
        store.write(record)


def test_one_broken_file_is_named_and_the_other_records_come(store, make_record, make_trial, caplog):
    records = [make_record(make_trial(seed=seed)) for seed in range(2)]
    for each in records:
        store.write(each)
    store.write_artifact(f"{records[0].trial_id}.json", b"{")
    assert [each.trial_id for each in store.records()] == [records[1].trial_id]
    assert f"{records[0].trial_id}.json: " in caplog.text


def test_of_two_files_of_a_trial_the_plain_one_counts_and_another_content_is_said(store, make_record, caplog):
    record, other = make_record(), make_record(metrics={"accuracy": 0.5})
    name = f"{record.trial_id}.json"
    store.write_artifact(name, record.dumps().encode())
    store.write_artifact(f"{name}.gz", gzip.compress(record.dumps().encode()))
    assert (store.read(record.trial_id), caplog.text) == (record, "")
    store.write_artifact(f"{name}.gz", gzip.compress(other.dumps().encode()))
    assert store.read(record.trial_id) == record
    (said,) = caplog.messages
    assert f"{name}.gz: it differs from {store.root}/{name}, a record of the same trial, which is used" in said


def test_a_gzipped_try_is_remembered_by_the_one_that_takes_its_place(folder, make_record, caplog):
    failed = make_record(state=State.FAILED, metrics={}, error={"type": "E", "message": "m", "traceback": ""})
    name = f"{failed.trial_id}.json"
    folder.write_artifact(f"{name}.gz", gzip.compress(failed.dumps().encode()))
    written = folder.write(make_record())
    assert [each["state"] for each in written.attempts] == ["failed"]
    assert (folder.read(failed.trial_id), caplog.text) == (written, "")


@pytest.mark.parametrize("content", [b"", b"plain", gzip.compress(b"{}")[:-3]])
def test_a_gzipped_file_that_cannot_be_unpacked_is_named(store, make_record, content):
    name = f"{make_record().trial_id}.json.gz"
    store.write_artifact(name, content)
    with pytest.raises(RecordError, match=rf"{name}: .*Move it away"):
        store.read(make_record().trial_id)


def test_what_unpacks_to_more_than_a_record_is_refused(store, make_record, monkeypatch):
    monkeypatch.setattr("harness.results.store.MOST_BYTES", 1000)
    store.write_artifact(f"{make_record().trial_id}.json.gz", gzip.compress(b" " * 2000))
    with pytest.raises(RecordError, match="more than 1,000 bytes"):
        store.read(make_record().trial_id)


def test_two_stores_share_a_root(store, make_record):
    store.write(make_record())
    other = Store(store.root)
    assert other.read(make_record().trial_id) == make_record()
    with pytest.raises(RecordError, match="written once"):
        other.write(make_record())


def test_local_tells_a_folder_from_a_url(tmp_path):
    assert Store(str(tmp_path)).local == tmp_path
    assert Store(f"file://{tmp_path}").local == tmp_path
    assert Store("memory://results").local is None


def test_half_written_files_of_dead_processes_are_swept_and_others_left(folder, tmp_path):
    dead = f"0123456789abcdef.json.{this_machine()}.999999999-1.{uuid.uuid4().hex}.tmp"
    living = f"0123456789abcdef.json.{this_machine()}.{this_process()}.{uuid.uuid4().hex}.tmp"
    elsewhere = f"0123456789abcdef.json.ffff.999999999-1.{uuid.uuid4().hex}.tmp"
    old = f"x.{uuid.uuid4().hex}.tmp"
    (tmp_path / "adapters").mkdir()
    for name in (dead, living, elsewhere, old, f"adapters/{dead}"):
        (tmp_path / name).write_text("half")
    os.utime(tmp_path / old, (0, 0))
    beats = [f"{this_machine()}.{process}.{uuid.uuid4().hex}.beat" for process in ("999999999-1", this_process())]
    (tmp_path / "claims").mkdir()
    for name in beats:
        (tmp_path / "claims" / name).write_text("7")
    folder.prepare()
    assert sorted(path.name for path in tmp_path.rglob("*.tmp")) == sorted([living, elsewhere])
    assert [path.name for path in tmp_path.rglob("*.beat")] == beats[1:]
