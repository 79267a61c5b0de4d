import dataclasses
import gzip
import json
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness_leaderboard.command import view_of
from harness_leaderboard.load import load


def write(folder, record):
    folder.mkdir(exist_ok=True)
    path = folder / f"{record.trial_id}.json"
    path.write_text(record.dumps())
    return path


def test_records_come_back_whole_and_in_order(tmp_path, make_record):
    records = [make_record(seed=seed, score=seed / 10, items=[0.0, 1.0, None]) for seed in range(4)]
    for record in records:
        write(tmp_path, record)
    wanted = [each.to_json() for each in sorted(records, key=lambda each: each.trial_id)]
    for _ in range(2):  # the second time from the index
        found = load([str(tmp_path)]).records
        whole = [dataclasses.replace(each, items=dict(each.items), history=list(each.history)) for each in found]
        assert [each.to_json() for each in whole] == wanted


def test_an_fsspec_url_is_read_like_a_folder(make_record):
    import fsspec

    record = make_record()
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe(f"/load-test/{record.trial_id}.json", record.dumps().encode())
    assert [each.trial_id for each in load(["memory://load-test"]).records] == [record.trial_id]


def test_other_files_subfolders_and_half_written_names_are_ignored(tmp_path, make_record):
    write(tmp_path, make_record())
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "x.json").write_text("not a record")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / ".half.json").write_text("{")
    loaded = load([str(tmp_path)])
    assert len(loaded.records) == 1
    assert loaded.passed_over == {}


def test_a_gzipped_record_is_read_where_there_is_no_plain_one(tmp_path, make_record):
    first, second = make_record(seed=0), make_record(seed=1)
    for record in (first, second):
        path = write(tmp_path, record)
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    (tmp_path / f"{first.trial_id}.json").unlink()
    (tmp_path / f"{'0' * 16}.json.gz").write_bytes(gzip.compress(b"{}")[:-4])
    loaded = load([str(tmp_path)])
    assert {each.trial_id for each in loaded.records} == {first.trial_id, second.trial_id}
    assert loaded.places[first.trial_id][1] == f"{first.trial_id}.json.gz"
    assert loaded.places[second.trial_id][1] == f"{second.trial_id}.json"
    ((path, why),) = loaded.passed_over.items()
    assert (Path(path).name, "cannot be unpacked" in why) == (f"{'0' * 16}.json.gz", True)


def test_a_folder_of_result_roots_is_all_of_them(tmp_path, make_record):
    records = [make_record(seed=0), make_record(seed=1)]
    for folder, record in zip(("a", "b"), records, strict=True):
        write(tmp_path / folder, record)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.json").write_text("{}")
    loaded = load([str(tmp_path)])
    assert {each.trial_id for each in loaded.records} == {each.trial_id for each in records}
    assert {root for root, _ in loaded.places.values()} == {str(tmp_path / "a"), str(tmp_path / "b")}


def test_a_root_without_a_record_is_an_error_that_says_what_was_looked_for(tmp_path, make_record, caplog):
    write(tmp_path / "full", make_record())
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.json").write_text("{}")
    roots = [str(tmp_path / "full"), str(tmp_path / "empty")]
    with pytest.raises(UsageError, match=r"no record in '.*empty'.* looked for files like .*\.json"):
        load(roots)
    assert "notes.json: not a record" in caplog.text
    assert len(load(roots, may_be_empty=True).records) == 1


def test_a_missing_folder_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UsageError, match="nowhere"):
        load([str(tmp_path / "nowhere")])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("not json", "not JSON"),
        ("[1, 2]", "not a record"),
        ('{"a": 1}', "not a record"),
        ('{"schema_version": 1, "trial": [1], "state": "complete"}', "not readable"),
        ('{"schema_version": 99, "trial": {}}', "schema_version=99"),
        (json.dumps({"trial": {}, "schema_version": 2}) + "\x00", "not JSON"),
    ],
)
def test_a_foreign_file_is_passed_over_and_named_with_the_reason(tmp_path, make_record, text, why):
    write(tmp_path, make_record())
    (tmp_path / "foreign.json").write_text(text)
    for _ in range(2):
        loaded = load([str(tmp_path)])
        assert len(loaded.records) == 1
        ((path, reason),) = loaded.passed_over.items()
        assert path.endswith("foreign.json")
        assert why in reason


def test_a_renamed_record_is_passed_over(tmp_path, make_record):
    write(tmp_path, make_record(seed=1))
    write(tmp_path, make_record()).rename(tmp_path / "other.json")
    assert "renamed" in next(iter(load([str(tmp_path)]).passed_over.values()))


def test_an_edited_record_is_there_and_its_numbers_are_not(tmp_path, make_record):
    path = write(tmp_path, make_record(score=0.5))
    path.write_text(path.read_text().replace('"accuracy": 0.5', '"accuracy": 0.9'))
    (record,) = load([str(tmp_path)]).records
    assert (record.state, record.score) == ("edited", None)


def test_a_trial_of_which_two_roots_say_different_things_is_said(tmp_path, make_record, caplog):
    first, other, same = make_record("lora", 0, 0.5), make_record("lora", 0, 0.9), make_record("mora", 0, 0.4)
    for folder, record in (("a", first), ("b", other), ("a", same), ("b", same)):
        write(tmp_path / folder, record)
    loaded = load([str(tmp_path / "a"), str(tmp_path / "b")])
    assert sorted(each.score for each in loaded.records) == [0.4, 0.5]
    name = f"{first.trial_id}.json"
    ((path, why),) = loaded.passed_over.items()
    assert path == str(tmp_path / "b" / name)
    assert f"it differs from {tmp_path / 'a' / name}, a record of the same trial, which is used" in why
    assert path in caplog.text


def test_a_torn_description_is_named_and_the_records_are_shown(tmp_path, make_record, caplog):
    root = tmp_path / "results [1]"  # whose name is no pattern
    write(root, make_record())
    (root / "catalogue" / "methods").mkdir(parents=True)
    (root / "catalogue" / "methods" / "lora.json").write_text('{"name": "lora", "title": "LoRA"}')
    (root / "catalogue" / "methods" / "mora.json").write_text("{")
    loaded = load([str(root)])
    assert (len(loaded.records), list(loaded.catalogue["methods"])) == (1, ["lora"])
    assert "catalogue/methods/mora.json: no description" in caplog.text
    assert view_of(loaded, None).methods[0].title == "LoRA", "a description of an older version, which says less"


def test_roots_are_merged_and_a_final_record_comes_before_an_interrupted_one(tmp_path, make_record):
    from harness.contract.record import State

    shared = make_record("lora", 0, 0.5)
    write(tmp_path / "a", make_record("lora", 0, state=State.INTERRUPTED))
    write(tmp_path / "b", shared)
    write(tmp_path / "b", make_record("mora", 0))
    loaded = load([str(tmp_path / "a"), str(tmp_path / "b")])
    assert {each.trial.method: each.state.value for each in loaded.records} == {"lora": "complete", "mora": "complete"}
    assert loaded.places[shared.trial_id] == (str(tmp_path / "b"), f"{shared.trial_id}.json")
