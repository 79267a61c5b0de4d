"""Settings in a table are those that differ from the default, and layers that share some are named as ranges."""

from __future__ import annotations

from harness.results.wording import layers_text, ranges, settings_text


def test_only_what_differs_from_the_default_is_said():
    values = {"r": 8, "alpha": 8.0, "dropout": 0.05, "sets": ["a", "b"], "new": "x"}
    assert settings_text(values, {"r": 8, "alpha": "auto", "dropout": 0.05, "sets": []}) == "alpha=8, sets=a+b, new=x"
    assert settings_text(values, values) == ""


def test_layers_of_the_same_blocks_are_named_together():
    layers = (
        [f"h.{n}.attn.q" for n in (0, 1, 2, 5)] + [f"h.{n}.mlp.up" for n in (5, 2, 1, 0)] + ["h.1.attn.v", "pooler"]
    )
    assert ranges(layers) == ["pooler", "h.0-2,5: attn.q, mlp.up", "h.1: attn.v"]
    assert ranges(["conv1.weight", "encoder.3"]) == ["conv1.weight", "encoder.3"]


def test_layers_are_grouped_by_their_settings():
    settings = {"h.0.q": {"r": 9, "alpha": 9.0}, "h.1.q": {"r": 9, "alpha": 9.0}, "h.2.q": {"r": 7}}
    assert layers_text(settings) == "r=9, alpha=9 on 2 layers (h.0-1: q); r=7 on 1 layer (h.2: q)"
    assert layers_text({}) == ""
