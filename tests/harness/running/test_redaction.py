"""Passwords and tokens are neither written down nor shown."""

from __future__ import annotations

import logging

import pytest

from harness.running.redaction import Redacting, redact


@pytest.fixture
def secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct horse battery")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/home/me/key.json")
    monkeypatch.setenv("SHORT_TOKEN", "abc")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("s3://key:secret@bucket/results", "s3://***@bucket/results"),
        ("cannot reach https://token@host/x: 401", "cannot reach https://***@host/x: 401"),
        ("https://host/x?access_token=abcdef&y=1", "https://host/x?access_token=***&y=1"),
        ("harness run --set api-key=abc", "harness run --set api-key=***"),
        ("got hf_abcdefghijklmnop, refused", "got ***, refused"),
        ("wJalrXUtnFEMI/K7MDENG and correct horse battery", "*** and ***"),
        ("/home/me/key.json is not there", "/home/me/key.json is not there"),
        ("abc: 12 tokens, max_new_tokens=5, s3://bucket/a@b", "abc: 12 tokens, max_new_tokens=5, s3://bucket/a@b"),
    ],
)
def test_what_is_secret_is_hidden_and_nothing_else(secrets, text, said):
    assert redact(text) == said
    assert redact({text: [text, 3, None]}) == {said: [said, 3, None]}


def test_log_messages_and_tracebacks_are_redacted(secrets):
    try:
        raise RuntimeError("with hf_abcdefghijklmnop")
    except RuntimeError as error:
        record = logging.LogRecord(
            "x", logging.WARNING, "", 0, "at %s", ("s3://a:b@c",), (type(error), error, error.__traceback__)
        )
    said = Redacting("%(message)s").format(record)
    assert "at s3://***@c" in said
    assert "RuntimeError: with ***" in said
