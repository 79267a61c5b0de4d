"""Tables from a folder or from the hub, and never anything else."""

from __future__ import annotations

import gzip
import json
import os

import pytest

from harness.contract.task import Source, Table
from harness.data import hub, tables
from harness.data.tables import identify, identify_tables, local_files, read_rows, read_table, require
from harness.errors import DataError

SOURCE = Source(hub_id="nobody/nothing", config="main", revision="abc", licence="mit", folder="some/rte")
ROWS = [{"text": "grün", "label": 1}, {"text": "blau", "label": 0}]


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr("harness.data.tables.is_offline", lambda: True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def put(tmp_path):
    def write(name, text):
        path = tmp_path / "data" / SOURCE.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return tmp_path / "data"

    return write


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train.jsonl", lines(ROWS)),
        ("train.jsonl.gz", lines(ROWS)),
        ("train.json", lines(ROWS)),
    ],
)
def test_a_table_is_read_from_any_of_the_formats(put, name, text):
    assert read_rows(SOURCE, "train", put(name, text)) == ROWS


def test_a_table_of_text_holds_text(put):
    folder = put("train.csv", "text,label\ngrün,1\nblau,0\n")
    assert read_rows(SOURCE, "train", folder) == [{**row, "label": str(row["label"])} for row in ROWS]
    assert read_table(SOURCE, "train", folder)[0] == {"text": "grün", "label": "1"}


def test_a_parquet_table_and_its_shards_are_read_in_order(put, tmp_path):
    import pandas as pd

    folder = put("train-00000-of-00002.jsonl", lines(ROWS[:1]))
    put("train-00001-of-00002.jsonl", lines(ROWS[1:]))
    put("train-extra.jsonl", lines(ROWS))  # not a shard
    assert read_rows(SOURCE, "train", folder) == ROWS
    pd.DataFrame(ROWS).to_parquet(folder / SOURCE.folder / "test.parquet")
    assert read_rows(SOURCE, "test", folder) == ROWS
    assert len(read_table(SOURCE, "test", folder)) == 2


def test_a_whole_file_goes_before_shards_and_of_two_formats_none_is_taken(put):
    folder = put("train.csv", "text,label\nrot,3\n")
    put("train-0.csv", "text,label\nshard,3\n")
    assert [path.name for path in local_files(SOURCE, "train", folder)] == ["train.csv"]
    put("train.jsonl", lines(ROWS))
    with pytest.raises(DataError, match=r"rte holds train\.jsonl and train\.csv, which are both train; take one away"):
        local_files(SOURCE, "train", folder)


def test_identity_follows_the_content(put):
    folder = put("train.jsonl", lines(ROWS))
    put("test.jsonl", lines(ROWS))
    before = identify(SOURCE, ["train", "test"], folder)
    assert before.startswith("sha256:")
    assert identify(SOURCE, ["train", "test"], folder) == before
    assert identify(SOURCE, ["test", "train"], folder) != before or identify(SOURCE, ["train"], folder) != before
    put("test.jsonl", lines(ROWS[:1]))
    assert identify(SOURCE, ["train", "test"], folder) != before


def test_a_changed_table_of_the_same_age_and_size_is_read_anew(put):
    """As after unpacking archives or copying files with their times; the library that reads tables looks at no more."""

    def read(rows):
        folder = put("train.jsonl", lines(rows))
        os.utime(folder / SOURCE.folder / "train.jsonl", (1_600_000_000, 1_600_000_000))
        tables._file_hash.cache_clear()  # as in another process
        return read_rows(SOURCE, "train", folder), identify(SOURCE, ["train"], folder)

    old, identity = read(ROWS)
    new, other_identity = read(ROWS[::-1])
    assert (old, new) == (ROWS, ROWS[::-1])
    assert identity != other_identity


def test_a_missing_table_names_the_file_and_what_to_do(put):
    folder = put("train.jsonl", lines(ROWS))
    with pytest.raises(
        DataError, match=r"some/rte/test\.jsonl.*leave --data-dir out to use 'nobody/nothing'.*'main' at abc"
    ):
        require(SOURCE, ["train", "test"], folder)
    with pytest.raises(DataError, match=r"offline.*'nobody/nothing'.*--data-dir with <data dir>/some/rte/train\.jsonl"):
        require(SOURCE, ["train"], None)
    with pytest.raises(DataError, match=r"not on the hub; give --data-dir"):
        require(Source(folder="x"), ["train"], None)
    with pytest.raises(DataError, match=r"there is no .*x/train\.jsonl") as caught:
        require(Source(folder="x"), ["train"], folder)
    assert "hub" not in str(caught.value)
    assert "leave --data-dir out" not in str(caught.value)


def test_shards_may_be_named_after_their_data_set(put):
    folder = put("c4-train.00001-of-00002.json.gz", lines(ROWS[1:]))
    put("c4-train.00000-of-00002.json.gz", lines(ROWS[:1]))
    put("c4-validation.00000-of-00001.json.gz", lines(ROWS))
    assert read_rows(SOURCE, "train", folder) == ROWS


def test_plain_text_is_read_to_the_letter(put):
    text = " = Title = \n\n  Grün ist\u2028die Farbe .\nlast line"
    folder = put("wiki.test.raw", text)
    assert "".join(row["text"] for row in read_rows(SOURCE, "wiki.test", folder)) == text


def test_a_table_that_is_not_needed_counts_where_it_is(put, monkeypatch):
    side = Source(hub_id="nobody/side", revision="def", folder=SOURCE.folder + "/side")
    tables = [Table(SOURCE, "train"), Table(side, "test", needed=False)]
    folder = put("train.jsonl", lines(ROWS))
    before = identify_tables(tables, folder)
    assert before == f"some/rte {identify(SOURCE, ['train'], folder)}"
    put("side/test.jsonl", lines(ROWS))
    assert identify_tables(tables, folder) == f"{before}; some/rte/side {identify(side, ['test'], folder)}"
    with pytest.raises(DataError, match=r"some/rte/train\.jsonl"):
        identify_tables(tables, folder / "elsewhere")
    assert identify_tables([], folder) == "generated"


def test_what_the_hub_identifies_does_not_depend_on_the_network_where_it_need_not(monkeypatch):
    side = Source(hub_id="nobody/side", revision="def", folder="side")
    local = Source(folder="local")
    assert identify_tables([Table(side, "test", False), Table(local, "x", False)], None) == "side nobody/side/@def"
    with pytest.raises(DataError, match="offline"):
        identify_tables([Table(side, "test")], None)


@pytest.mark.parametrize("text", ["{", "not json at all\n", ""])
def test_a_broken_table_is_named(put, text):
    folder = put("train.jsonl", text)
    with pytest.raises(DataError, match=r"train\.jsonl (cannot be read as json|holds no rows)"):
        read_rows(SOURCE, "train", folder)


def test_what_the_hub_identifies(monkeypatch):
    monkeypatch.setattr("harness.data.tables.is_offline", lambda: False)
    assert identify(SOURCE, ["train"], None) == "nobody/nothing/main@abc"


def test_a_hub_that_does_not_answer_costs_one_attempt(monkeypatch):
    from huggingface_hub import constants

    asked = []

    class Dead:
        def head(self, url, timeout):
            asked.append((url, timeout))
            raise ConnectionError("nobody there")

    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils.get_session", Dead)
    hub.is_offline.cache_clear()
    try:
        assert hub.is_offline()
        assert hub.is_offline()
        assert asked == [(constants.ENDPOINT, hub.SECONDS)]
        assert constants.HF_HUB_OFFLINE
    finally:
        hub.is_offline.cache_clear()
