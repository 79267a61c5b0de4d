"""Tokens kept on disk: the same examples as made anew, made once, and never for something else."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from harness import IGNORE, Example
from harness.bases import resolve
from harness.data import token_table
from harness.data.token_table import TokenTable, tokenised_once

TEXTS = ["one text", "a longer text", "", "a fourth"]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(resolve("nano"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where tables are kept in a test, however few texts there are."""
    monkeypatch.setattr("platformdirs.user_cache_path", lambda _: tmp_path)
    monkeypatch.setattr(token_table, "FEWEST", 1)
    return tmp_path / "tokens"


def plain(example):
    """Return an example of arrays as one of lists."""
    labels, types = example.labels, example.token_type_ids
    return Example(
        list(example.input_ids),
        labels if isinstance(labels, (int, float)) else list(labels),
        None if types is None else list(types),
    )


TOKENS = st.lists(st.integers(0, 300_000), min_size=1, max_size=6)
PER_TOKEN = TOKENS.flatmap(
    lambda ids: st.lists(st.sampled_from([IGNORE, *ids]), min_size=len(ids), max_size=len(ids)).map(
        lambda labels: Example(ids, labels)
    )
)
PAIRS = TOKENS.flatmap(
    lambda ids: st.builds(
        Example, st.just(ids), st.integers(0, 5), st.lists(st.integers(0, 1), min_size=len(ids), max_size=len(ids))
    )
)
SCORED = st.builds(Example, TOKENS, st.one_of(st.floats(0, 5), st.integers(0, 5)), st.none())


@given(st.one_of(*(st.lists(kind, min_size=1, max_size=7) for kind in (PER_TOKEN, PAIRS, SCORED))))
def test_a_table_gives_back_what_went_in(tmp_path_factory, examples):
    folder = tmp_path_factory.mktemp("table") / "t"
    TokenTable.of(examples).write(folder)
    table = TokenTable.read(folder)
    assert [plain(each) for each in table] == examples
    assert plain(table[-1]) == examples[-1]
    assert [plain(each) for each in table[1:3]] == examples[1:3]
    assert {type(each.labels) for each in table} <= {int, float, np.memmap}
    assert [each.name for each in folder.parent.iterdir()] == ["t"]
    with pytest.raises(IndexError, match=f"example {len(examples)} of"):
        table[len(examples)]


def tokenise(texts, tokenizer, made, settings=(8,)):
    def encode():
        made.append(list(texts))
        ids = [tokenizer(text)["input_ids"] for text in texts]
        return [Example(each, each) for each in ids]

    return [plain(each) for each in tokenised_once(texts, list(settings), tokenizer, encode)]


def test_texts_are_tokenised_once(cache, tokenizer):
    made = []
    first = tokenise(TEXTS, tokenizer, made)
    assert first == [Example(ids, ids, None) for ids in (tokenizer(text)["input_ids"] for text in TEXTS)]
    assert tokenise(TEXTS, tokenizer, made) == first
    assert len(made) == 1
    assert len([each for each in cache.iterdir() if each.is_dir()]) == 1


@pytest.mark.parametrize(
    ("texts", "settings"),
    [
        (TEXTS[:3], (8,)),
        (["one", " texta longer text", "", "a fourth"], (8,)),  # the same letters, divided otherwise
        (TEXTS[::-1], (8,)),
        (TEXTS, (9,)),
    ],
)
def test_other_texts_order_or_settings_are_tokenised_anew(cache, tokenizer, texts, settings):
    made = []
    tokenise(TEXTS, tokenizer, made)
    found = tokenise(texts, tokenizer, made, settings)
    assert len(made) == 2
    assert found == [Example(ids, ids, None) for ids in (tokenizer(text)["input_ids"] for text in texts)]


def test_another_tokenizer_tokenises_anew(cache, tokenizer):
    other = AutoTokenizer.from_pretrained(resolve("nano"))
    other.add_tokens(["longer"])
    made = []
    assert tokenise(TEXTS, tokenizer, made) != tokenise(TEXTS, other, made)
    assert len(made) == 2


def test_few_texts_and_tokenizers_without_content_leave_nothing_on_the_disk(cache, tokenizer, monkeypatch):
    made = []
    tokenise(TEXTS, lambda text: {"input_ids": [1]}, made)
    monkeypatch.setattr(token_table, "FEWEST", 5)
    tokenise(TEXTS, tokenizer, made)
    tokenise(TEXTS, tokenizer, made)
    assert len(made) == 3
    assert not cache.exists()


def test_no_example_is_no_table(cache, tokenizer):
    assert tokenised_once(TEXTS, [], tokenizer, lambda: []) == []
    assert not [each for each in cache.iterdir() if each.is_dir()]


@pytest.mark.parametrize("harm", ["cut", "gone", "read-only"])
def test_a_table_that_cannot_be_read_or_written_is_made_anew_and_said(cache, tokenizer, caplog, harm, monkeypatch):
    made = []
    if harm == "read-only":

        def refuse(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(TokenTable, "write", refuse)
    expected = tokenise(TEXTS, tokenizer, made)
    for path in cache.glob("*/ids.npy"):
        path.write_bytes(path.read_bytes()[:100]) if harm == "cut" else path.unlink()
    assert tokenise(TEXTS, tokenizer, made) == expected
    assert "each worker makes them anew" in caplog.text


def test_several_processes_tokenise_once_between_them(tmp_path):
    script = textwrap.dedent(
        """
        import sys, time
        from transformers import AutoTokenizer
        from harness import Example, tokenised_once
        from harness.bases import resolve
        from harness.data import token_table

        token_table.FEWEST = 1
        tokenizer = AutoTokenizer.from_pretrained(resolve("nano"))

        def encode():
            time.sleep(0.5)
            print("made", flush=True)
            return [Example([1, 2], [1, 2])]

        print(list(tokenised_once(["text"], [], tokenizer, encode)[0].input_ids))
        """
    )
    (tmp_path / "script.py").write_text(script)
    environment = {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path), "PATH": "", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, tmp_path / "script.py"], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    said = [process.communicate(timeout=120)[0].split("\n") for process in processes]
    assert sum("made" in lines for lines in said) == 1
    assert all("[np.int32(1), np.int32(2)]" in lines or "[1, 2]" in lines for lines in said)
