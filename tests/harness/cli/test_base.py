"""``harness base`` lists and builds the shipped base models; building itself is tested with ``harness.bases``."""

from __future__ import annotations


def test_the_shipped_models_are_listed(command):
    assert command("base", "list").out.startswith("nano  ")


def test_an_unknown_model_exits_with_2(command):
    done = command("base", "build", "huge")
    assert "no shipped base model is called 'huge'; known: nano" in done.err
    assert done.code == 2
