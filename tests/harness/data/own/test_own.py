"""A user's data from file to splits: understood, checked value by value, split by content."""

from __future__ import annotations

import csv
import io
import json
import random

import pandas as pd
import pytest

from harness.data.own.locate import understand
from harness.data.own.splits import read_own
from harness.errors import DataError, UsageError


@pytest.fixture
def put(tmp_path):
    def write(name, rows):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".csv"):
            text = io.StringIO()
            writer = csv.DictWriter(text, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
            path.write_text(text.getvalue())
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def reviews(count=40, **more):
    return [{"text": f"text {i}", "label": "good" if i % 2 else "bad", **more} for i in range(count)]


def read(where, **options):
    own = understand(str(where), **options)
    return own, read_own(own.recipe(), own.kind, own.data_dir)


def texts(rows):
    return [row.texts or row.turns for row in rows]


def test_a_file_is_understood_and_split(put):
    own, tables = read(put("My Reviews.csv", reviews()))
    assert (own.title, own.kind, own.fields["labels"]) == ("my-reviews", "classification", ("bad", "good"))
    assert {split: len(rows) for split, rows in tables.splits.items()} == {"train": 32, "validation": 4, "test": 4}
    everything = sorted(text for rows in tables.splits.values() for text in texts(rows))
    assert everything == sorted((row["text"],) for row in reviews())
    for rows in tables.splits.values():
        assert {row.label for row in rows} == {"bad", "good"}


def test_splits_depend_on_content_and_not_on_the_order(put):
    rows = reviews(200)
    _, one = read(put("a.csv", rows))
    random.Random(3).shuffle(rows)
    _, other = read(put("b.csv", rows))
    for split in one.splits:
        assert sorted(texts(one.splits[split])) == sorted(texts(other.splits[split]))


def test_rows_that_ask_the_same_stay_on_one_side(put):
    rows = [row for row in reviews(60) for _ in range(3)]
    for place, row in enumerate(rows):
        rows[place] = {**row, "text": row["text"].upper() if place % 3 else f"  {row['text']} "}
    _, tables = read(put("a.jsonl", rows))
    keys = {split: {row.key for row in rows} for split, rows in tables.splits.items()}
    assert not keys["train"] & keys["test"] | keys["train"] & keys["validation"] | keys["validation"] & keys["test"]
    assert sum(map(len, tables.splits.values())) == 180
    assert any("120 rows repeat" in note for note in tables.notes)


def test_answers_that_contradict_each_other_are_told(put):
    rows = [*reviews(), {"text": "text 0", "label": "good"}]
    _, tables = read(put("a.jsonl", rows))
    assert any("1 of them have different answers" in note and "line 1 and" in note for note in tables.notes)


def test_given_splits_are_kept_and_no_training_row_is_scored(put, tmp_path):
    put("data/train.jsonl", reviews(30))
    put("data/test.jsonl", reviews(33)[28:])
    own, tables = read(tmp_path / "data")
    assert own.title == "data"
    assert len(tables.splits["test"]) == 5
    assert len(tables.splits["train"]) + len(tables.splits["validation"]) == 28
    assert any("2 rows of train are also in another split" in note for note in tables.notes)


def test_a_training_split_that_is_all_scored_is_refused(put, tmp_path):
    put("data/train.jsonl", reviews(30)[:20])
    put("data/validation.jsonl", reviews(30)[20:])
    put("data/test.jsonl", reviews(30)[:20])
    with pytest.raises(DataError, match="every row of train is also in validation or test"):
        read(tmp_path / "data")


def test_the_worlds_names_of_splits_are_known(put, tmp_path):
    for name, count in (("training", 20), ("dev", 6), ("test", 6)):
        put(f"d/{name}.jsonl", [{"text": f"{name} {i}", "label": i % 2} for i in range(count)])
    own, tables = read(tmp_path / "d")
    assert {split: len(rows) for split, rows in tables.splits.items()} == {"train": 20, "validation": 6, "test": 6}
    assert own.fields["labels"] == ("0", "1")


@pytest.mark.parametrize("whole", [True, False])
def test_a_folder_that_datasets_saved_is_read_with_the_names_of_its_classes(tmp_path, whole):
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["spam", "ham"])}
    )
    made = datasets.Dataset.from_dict(
        {"text": [f"t{i}" for i in range(30)], "label": [i % 2 for i in range(30)]}, features=features
    )
    (made if whole else datasets.DatasetDict(train=made)).save_to_disk(tmp_path / "saved")
    own, tables = read(tmp_path / "saved")
    assert own.fields["labels"] == ("ham", "spam")
    assert sum(map(len, tables.splits.values())) == 30
    assert {row.label for row in tables.splits["train"] if row.texts == ("t0",)} <= {"spam"}


def test_prompts_and_conversations_are_turns(put):
    rows = [{"instruction": f"q{i}", "input": "given" if i else "", "output": "a"} for i in range(20)]
    _, tables = read(put("a.jsonl", rows))
    turns = {turns for rows in tables.splits.values() for turns in texts(rows)}
    assert (("user", "q0"), ("assistant", "a")) in turns
    assert (("user", "q1\n\ngiven"), ("assistant", "a")) in turns
    shared = [
        {"conversations": [{"from": "human", "value": f"q{i}"}, {"from": "gpt", "value": "a"}]} for i in range(20)
    ]
    own, tables = read(put("b.jsonl", shared))
    assert own.kind == "instructions"
    assert (("user", "q0"), ("assistant", "a")) in {t for rows in tables.splits.values() for t in texts(rows)}


def talk(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"text": "x", "label": -0.5}, r"a\.jsonl, line 41: label \(column 'label'\) is -0\.5, a fraction"),
        ({"text": "x", "label": None}, r"line 41: label \(column 'label'\) is missing"),
        ({"text": "x", "label": ""}, r"line 41: label .* an empty text"),
        ({"text": "  ", "label": "bad"}, r"line 41: text \(column 'text'\) is '  ', an empty text"),
        ({"text": 7, "label": "bad"}, r"line 41: text \(column 'text'\) is 7, of type int; write it as text"),
        ({"text": "x"}, r"line 41: label \(column 'label'\) is missing"),
        ({"text": "\ud800", "label": "bad"}, r"line 41: text .* half of a character"),
        ({"text": "x", "label": "Bad "}, r"labels 'bad' \(.*line 1\) and 'Bad ' \(.*line 41\) differ only in case"),
    ],
)
def test_a_wrong_value_is_refused_with_file_row_and_value(put, wrong, message):
    with pytest.raises(DataError, match=message):
        read(put("a.jsonl", [*reviews(), wrong]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (talk(("user", "q")), r"ends with the user's turn"),
        (talk(("user", ""), ("assistant", "a")), r"turn 1 of column 'messages', the user's, is '', an empty text"),
        (talk(("tool", "q"), ("assistant", "a")), r"has role 'tool'; roles are system, user, assistant"),
        (talk(("user", "q"), ("user", "r"), ("assistant", "a")), r"turn 2 .* join the two"),
        (talk(("assistant", "a")), r"holds the assistant's turn alone"),
        ({"messages": "hello"}, r"is 'hello'; write a list"),
    ],
)
def test_a_wrong_conversation_is_refused(put, wrong, message):
    rows = [talk(("user", f"q{i}"), ("assistant", "a")) for i in range(20)]
    with pytest.raises(DataError, match=message):
        read(put("a.jsonl", [*rows, wrong]))


def test_many_wrong_rows_are_counted_and_the_first_are_named(put):
    rows = [*reviews(), *({"text": "", "label": "bad"} for _ in range(9))]
    with pytest.raises(DataError, match=r"line 41.*\n.*line 42(.*\n)+\.\.\. and 4 more"):
        read(put("a.jsonl", rows))


def test_labels_outside_of_those_declared_are_refused(put):
    path = put("a.csv", reviews())
    assert read(path, labels="good,bad")[0].fields["labels"] == ("good", "bad")
    with pytest.raises(DataError, match=r"line 2: label 'bad' is none of good, other"):
        read(path, labels="good,other")
    with pytest.raises(UsageError, match="give at least two, each once"):
        read(path, labels="good,good")


def test_a_label_that_is_tested_and_not_trained_is_refused(put, tmp_path):
    put("d/train.jsonl", reviews(30))
    put("d/test.jsonl", [{"text": "new", "label": "odd"}])
    with pytest.raises(DataError, match=r"test\.jsonl, line 1: label 'odd' is in test but in no training row"):
        read(tmp_path / "d")


def test_what_is_no_classification_is_refused(put):
    with pytest.raises(DataError, match="every row has label 'x'; there is nothing to tell apart"):
        read(put("a.jsonl", [{"text": f"t{i}", "label": "x"} for i in range(20)]))
    with pytest.raises(DataError, match=r"50 different labels in 50 rows.*these are no classes"):
        read(put("b.jsonl", [{"text": f"t{i}", "label": f"free text {i}"} for i in range(50)]))
    with pytest.raises(DataError, match="4 different rows are too few"):
        read(put("c.jsonl", reviews(4)))


def test_numbers_are_labels_in_their_order(put):
    rows = [{"text": f"t{i}", "label": i % 11} for i in range(110)]
    assert understand(str(put("a.jsonl", rows))).fields["labels"] == tuple(map(str, range(11)))


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(DataError, match=r"no file or folder .*nothing\.csv"):
        understand(str(tmp_path / "nothing.csv"))
    with pytest.raises(DataError, match=r"holds nothing; wanted: train\.jsonl"):
        understand(str(tmp_path))
    with pytest.raises(DataError, match="'/dev/null' is neither a file nor a folder"):
        understand("/dev/null")
    with pytest.raises(UsageError, match="is empty; give a file, a folder or a hub id"):
        understand(" ")
    for text in ("{", "{}", "[]"):
        (tmp_path / "dataset_dict.json").write_text(text)
        with pytest.raises(DataError, match=r"dataset_dict\.json does not say which splits there are"):
            understand(str(tmp_path))


def test_parts_that_another_tool_wrote_are_one_table(tmp_path):
    frame = pd.DataFrame(reviews(40))
    folder = tmp_path / "exported"
    folder.mkdir()
    frame[:25].to_parquet(folder / "part-00000-1b2c.snappy.parquet")
    frame[25:].to_parquet(folder / "part-00001-1b2c.snappy.parquet")
    (folder / "_SUCCESS").touch()
    own, tables = read(folder)
    assert (own.title, own.kind) == ("exported", "classification")
    assert sum(len(rows) for rows in tables.splits.values()) == 40
    frame[:5].to_csv(folder / "part-00002.csv")  # some other table: not read as one, and not left out without a word
    with pytest.raises(DataError, match=r"exported holds .*part-00002\.csv"):
        understand(str(folder))
