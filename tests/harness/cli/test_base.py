"""``harness base`` lists and builds the shipped base models; building itself is tested with ``harness.bases``."""

from __future__ import annotations

from harness.bases.nano import recipe, text


def test_the_shipped_models_are_listed(command):
    assert command("base", "list").out.startswith("nano  ")


def test_an_unknown_model_exits_with_2(command):
    done = command("base", "build", "huge")
    assert "no shipped base model is called 'huge'; known: nano" in done.err
    assert done.code == 2


def test_a_build_goes_where_it_was_asked_to_and_says_how_close_it_is(command, monkeypatch, tmp_path):
    monkeypatch.setattr(recipe, "ROWS", {"source": 2, "documentation": 1, "uuid": 1})
    monkeypatch.setattr(recipe, "TOKENS", 64)
    monkeypatch.setattr(text, "HELD_OUT_MODULES", ("bisect",))
    monkeypatch.chdir(tmp_path)
    done = command("base", "build", "nano", "--steps", "2", "--device", "cpu")
    assert done.code == 0
    assert "step 2/2" in done.out
    assert "nano built in nano" in done.out
    assert (tmp_path / "nano" / "model.safetensors").exists()
    again = command("base", "build", "nano", "-o", tmp_path / "nano", "--steps", "2")
    assert again.code == 2
    assert "is not an empty folder" in again.err


def test_a_device_that_is_not_there_exits_with_2_before_anything_is_read(command, tmp_path):
    done = command("base", "build", "nano", "-o", tmp_path / "nano", "--device", "foo")
    assert (done.code, "--device 'foo' is not known; give auto, cpu, cuda or cuda:N" in done.err) == (2, True)
