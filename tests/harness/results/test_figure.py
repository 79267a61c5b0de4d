"""Pictures show what analyses found: every subject, projection and number by its name."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from harness import Analysis, LayerChange, LayerFindings
from harness.errors import UsageError
from harness.results.analysis import analyse
from harness.results.figure import check_figure, figure, short_names


class Size(Analysis):
    """Two numbers and two curves."""

    name = "size"
    title = "Sizes"
    columns: ClassVar = {"sum": "of the entries", "half": "of it, of some layers"}
    curves: ClassVar = {"row": "first row", "column": "first column"}
    along: ClassVar = {"row": "column", "column": "row"}

    def look(self, layer, generator):
        total = float(layer.update.sum())
        return LayerFindings(
            {"sum": total, "half": total / 2 if total > 2 else None},
            {"row": layer.update[0].tolist(), "column": layer.update[:, 0].tolist()},
        )


LAYERS = [
    LayerChange(f"blocks.{block}.{name}", torch.zeros(2, 2), torch.full((2, 2), float(value)))
    for block, name, value in ((0, "q", 1), (0, "v", 2), (1, "q", 3), (1, "v", 0))
]


def found(kind, *labels):
    return [analyse(kind(), LAYERS, {"trial_id": each, "label": each, "model": "m"}) for each in labels]


def drawn(several, folder):
    figure(several, folder / "f.svg")
    return (folder / "f.svg").read_text(encoding="utf-8")


def panels(text):
    return text.count('id="axes_')


def says(text, *words):
    return [word for word in words if f"<!-- {word} -->" not in text]


def test_curves_of_several_trials_have_a_panel_for_each_projection(tmp_path):
    text = drawn(found(Size, "task/lora/lr1/s0", "task/mora/lr1/s0"), tmp_path)
    assert panels(text) == 4
    assert not says(text, "Sizes", "q", "v", "first row", "first column", "column", "row", "lora", "mora")


def test_curves_of_one_row_are_drawn_against_each_other_where_there_is_one_subject(tmp_path):
    class Together(Size):
        panels: ClassVar = (("row", "column"),)

    text = drawn(found(Together, "a"), tmp_path)
    assert panels(text) == 2
    assert not says(text, "first row", "first column")


def test_an_analysis_chooses_the_numbers_that_are_drawn(tmp_path):
    class Chosen(Size):
        panels: ClassVar = (("half",), ("row",))

    text = drawn(found(Chosen, "a", "b"), tmp_path)
    assert panels(text) == 1 + 2
    assert not says(text, "half: of it, of some layers", "all", "a", "b")
    assert says(text, "sum: of the entries") == ["sum: of the entries"]


def test_without_curves_every_number_has_a_panel(tmp_path):
    class Plain(Size):
        curves: ClassVar = {}

        def look(self, layer, generator):
            return LayerFindings(super().look(layer, generator).values)

    text = drawn(found(Plain, "a", "b"), tmp_path)
    assert panels(text) == 2
    assert not says(text, "sum: of the entries", "half: of it, of some layers", "q", "v", "all", "a", "b")


def test_numbers_of_one_scale_are_beside_each_other_where_there_is_one_subject(tmp_path):
    class Together(Size):
        panels: ClassVar = (("sum", "half"),)

    text = drawn(found(Together, "a"), tmp_path)
    assert panels(text) == 1
    assert not says(text, "of the entries", "of it, of some layers")


def test_curves_over_decades_are_drawn_where_their_values_are(tmp_path):
    class Decades(Size):
        logarithmic: ClassVar = ("row",)
        panels: ClassVar = (("row",),)

        def look(self, layer, generator):
            return LayerFindings(super().look(layer, generator).values, {"row": [1.0, 0.5, 1e-18]})

    text = drawn(found(Decades, "a"), tmp_path)
    assert "10^{-4}" in text.replace("mathdefault{", "").replace("}}", "}")
    assert "10^{-15}" not in text.replace("mathdefault{", "").replace("}}", "}")


@pytest.mark.parametrize(("name", "said"), [("f.zzz", "must end in one of"), ("none/f.svg", "there is no folder")])
def test_a_picture_that_could_not_be_drawn_is_refused_before_anything_is_measured(tmp_path, name, said):
    with pytest.raises(UsageError, match=said):
        check_figure(tmp_path / name)
    check_figure(tmp_path / "f.png")


def test_names_leave_out_what_all_share():
    assert list(short_names(["t/lora/lr1/s0", "t/mora/lr2/s0"]).values()) == ["lora/lr1", "mora/lr2"]
    assert list(short_names(["a", "b/c"]).values()) == ["a", "b/c"]
    assert list(short_names(["a", "a"]).values()) == ["a"]
