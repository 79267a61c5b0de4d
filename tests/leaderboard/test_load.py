import pytest

from harness.errors import RecordError
from harness_leaderboard.load import load_records


def write(folder, record):
    path = folder / f"{record.trial_id}.json"
    path.write_text(record.dumps())
    return path


def test_records_come_back_whole_and_in_order(tmp_path, make_record):
    records = [make_record(seed=seed, score=seed / 10) for seed in range(4)]
    for record in records:
        write(tmp_path, record)
    loaded = load_records(str(tmp_path))
    assert [each.to_json() for each in loaded] == [
        each.to_json() for each in sorted(records, key=lambda each: each.trial_id)
    ]


def test_an_fsspec_url_is_read_like_a_folder(make_record):
    import fsspec

    record = make_record()
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe(f"/load-test/{record.trial_id}.json", record.dumps().encode())
    assert [each.trial_id for each in load_records("memory://load-test")] == [record.trial_id]


def test_other_files_subfolders_and_half_written_names_are_ignored(tmp_path, make_record):
    write(tmp_path, make_record())
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "x.json").write_text("not a record")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / ".half.json").write_text("{")
    assert len(load_records(str(tmp_path))) == 1


def test_an_empty_folder_has_no_records(tmp_path):
    assert load_records(str(tmp_path)) == []


def test_a_missing_folder_is_an_error_that_names_it(tmp_path):
    with pytest.raises(RecordError, match="nowhere"):
        load_records(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '"text"', '{"schema_version": 99}', '{"schema_version": NaN}']
)
def test_every_unreadable_file_is_named(tmp_path, make_record, content):
    write(tmp_path, make_record())
    (tmp_path / "first-bad.json").write_text(content)
    (tmp_path / "second-bad.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordError, match="2 of 3 files") as caught:
        load_records(str(tmp_path))
    assert "first-bad.json" in str(caught.value)
    assert "second-bad.json" in str(caught.value)


def test_a_record_without_a_trial_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "odd.json").write_text('{"schema_version": 1, "trial": [1], "state": "complete"}')
    with pytest.raises(RecordError, match=r"odd\.json"):
        load_records(str(tmp_path))


def test_an_edited_or_renamed_record_is_refused(tmp_path, make_record):
    path = write(tmp_path, make_record())
    text = path.read_text()
    path.write_text(text.replace('"learning_rate": 0.001,', '"learning_rate": 0.002,'))
    with pytest.raises(RecordError, match="edited"):
        load_records(str(tmp_path))
    path.write_text(text)
    path.rename(tmp_path / "other.json")
    with pytest.raises(RecordError, match="renamed"):
        load_records(str(tmp_path))
