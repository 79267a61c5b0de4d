"""Rows as they are written: text stays text, and what cannot be read is refused with its place."""

from __future__ import annotations

import json
from datetime import date

import pytest

from harness.contract.task import Source
from harness.data.rows import class_names, placed_rows
from harness.data.tables import read_rows
from harness.errors import DataError


@pytest.fixture
def put(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def values(path):
    return [dict(row.values) for row in placed_rows(path)]


TEXTS = ["null", "NA", "None", "nan", "", "007", "1.50", "2021-04-01", "true", " spaced ", "1e5", "-"]


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_what_looks_like_something_else_stays_text(put, ending):
    between = {"csv": ",", "tsv": "\t"}[ending]
    path = put(f"t.{ending}", "".join(f"{a}{between}x\n" for a in ["text", *TEXTS]))
    assert [row["text"] for row in values(path)] == TEXTS


def test_json_texts_stay_texts_and_its_other_types_stay_what_they_are(put):
    rows = [{"a": text, "n": 1, "f": 1.0, "b": True, "z": None} for text in TEXTS]
    read = values(put("t.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))
    assert read == rows
    assert [type(each) for each in read[0].values()] == [str, int, float, bool, type(None)]


def test_a_column_of_dates_is_text_where_tasks_read_it(put):
    rows = [{"question": f"day {i}?", "answer": f"2021-04-{i:02d}"} for i in range(1, 20)]
    put("test.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    folder = put("x", "").parent
    assert read_rows(Source(folder="."), "test", folder) == rows


def test_quoted_fields_hold_line_breaks_and_places_count_lines(put):
    path = put("t.csv", 'text,label\n"two\nlines, here",a\n\nplain,b\n')
    assert [tuple(row) for row in placed_rows(path)] == [
        ("line 2", {"text": "two\nlines, here", "label": "a"}),
        ("line 5", {"text": "plain", "label": "b"}),
    ]


def test_a_byte_order_mark_is_no_part_of_the_first_column(put):
    assert values(put("t.csv", b"\xef\xbb\xbftext\nx\n")) == [{"text": "x"}]


def test_parquet_keeps_its_types_and_the_names_of_its_classes(tmp_path):
    import datasets

    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "day": datasets.Value("date32"),
        }
    )
    rows = {"text": ["007", "NA"], "label": [1, 0], "day": [date(2021, 4, 1)] * 2}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "t.parquet")
    assert values(tmp_path / "t.parquet")[0] == {"text": "007", "label": 1, "day": date(2021, 4, 1)}
    assert class_names(tmp_path / "t.parquet", "label") == ["no", "yes"]
    assert class_names(tmp_path / "t.parquet", "text") is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"text\ngr\xfcn\n", r"t\.csv, line 2: byte 0xfc after 'gr' is not UTF-8"),
        ("t.jsonl", b'{"a": "\xff"}\n', r"t\.jsonl, line 1: byte 0xff.*is not UTF-8"),
        ("t.csv", "text,label\na,b\nc\n", r"t\.csv, line 3: 1 fields, beginning with 'c', where the header has 2"),
        ("t.csv", "text,label\na,b,c\n", r"line 2: 3 fields"),
        ("t.csv", "text,text\na,b\n", r"line 1: two columns are called 'text'"),
        ("t.csv", 'text\n"never closed\n', r"t\.csv, line 2: unexpected end of data"),
        ("t.jsonl", '{"a": 1}\n{"a": \n', r"line 2: Expecting value at character"),
        ("t.jsonl", '{"a": NaN}\n', r"line 1: NaN is no JSON value"),
        ("t.jsonl", '{"a": 1}\n{"a": 1, "b": {"c": 1, "c": 2}}\n', r"line 2: 'c' is there twice in one object"),
        ("t.csv", "text;label\na;b\n", r"line 1: the header is one field, 'text;label'; .* ';' separates .* ',' does"),
        ("t.tsv", "text,label\na,b\n", r"line 1: the header is one field, 'text,label'; .* ',' separates"),
        ("t.jsonl", "3\n", r"line 1: 3 is no JSON object"),
        ("t.json", '[{"a": 1}, 3]', r"row 2: 3 is no JSON object"),
        ("t.xls", "", r"t\.xls has no known ending; known: \.jsonl"),
        ("t.parquet", "no parquet", r"t\.parquet cannot be read as parquet"),
        ("t.jsonl.gz", "no gzip", r"t\.jsonl\.gz cannot be read"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(put, name, content, message):
    with pytest.raises(DataError, match=message):
        values(put(name, content))
