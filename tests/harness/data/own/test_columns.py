"""What columns are, by their names or by the user's word; never a guess."""

from __future__ import annotations

import pytest

from harness.data.own.columns import DataKind, find_columns, parse_columns
from harness.errors import DataError, UsageError


@pytest.mark.parametrize(
    ("columns", "kind", "roles"),
    [
        (["messages", "id"], "instructions", {"messages": "messages"}),
        (["Prompt", "Response"], "instructions", {"prompt": "Prompt", "response": "Response"}),
        (
            ["instruction", "input", "output"],
            "instructions",
            {"prompt": "instruction", "input": "input", "response": "output"},
        ),
        (["input", "output"], "instructions", {"prompt": "input", "response": "output"}),
        (["id", "text", "label"], "classification", {"text": "text", "label": "label"}),
        (
            ["premise", "hypothesis", "label"],
            "classification",
            {"text": "premise", "text_pair": "hypothesis", "label": "label"},
        ),
        (["id", "text"], "text", {"text": "text"}),
    ],
)
def test_columns_are_found_by_name(columns, kind, roles):
    assert find_columns(columns, {}, None, "t") == (DataKind(kind), roles)


def test_the_users_word_goes_before_names():
    given = parse_columns("text=body, label=stars")
    assert find_columns(["body", "stars", "text", "label"], given, None, "t") == (
        DataKind.CLASSIFICATION,
        {"text": "body", "label": "stars"},
    )
    assert find_columns(["text", "label"], {}, DataKind.TEXT, "t")[0] is DataKind.TEXT


@pytest.mark.parametrize(
    ("columns", "given", "message"),
    [
        (["a", "b"], {}, r"t has columns a, b, by whose names it is not anything known; say what they are"),
        (["question", "answer", "output"], {}, r"'output' and 'answer' could each be the response; say which"),
        (["Text", "text", "label"], {}, r"'Text' and 'text' could each be the text; say which"),
        (["text", "label", "prompt", "response"], {}, r"could be for instructions or classification; say which"),
        (["text", "lable"], {"label": "label"}, r"has no column 'label' \(label\); did you mean 'lable'"),
        (["body", "stars"], {}, r"t has columns body, stars, by whose names it is not anything known"),
        (["text", "x"], {"response": "x"}, r"it is not anything known"),
    ],
)
def test_what_is_not_plain_is_asked(columns, given, message):
    with pytest.raises(DataError, match=message):
        find_columns(columns, given, None, "t")


@pytest.mark.parametrize(
    ("text", "message"),
    [("prompt", "write ROLE=COLUMN"), ("promt=x", "'promt' is no role"), ("text=a,text=b", "text is given twice")],
)
def test_a_wrong_word_is_named(text, message):
    with pytest.raises(UsageError, match=message):
        parse_columns(text)
