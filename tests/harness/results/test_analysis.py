"""Analyses go through the layers of trials and base models, and what they find is kept and shown."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest
import torch

from harness import Analysis, LayerChange, LayerFindings
from harness.errors import HarnessError, UsageError
from harness.results.analysis import analyse, check_figure, figure, mean_of, table, write
from harness.results.store import Store


class Size(Analysis):
    """The sum of the update, and its first row."""

    name = "size"
    columns: ClassVar = {"sum": "of the entries", "half": "of it, of some layers"}
    curves: ClassVar = {"row": "first row"}

    def look(self, layer, generator):
        total = float(layer.update.sum())
        return LayerFindings(
            {"sum": total, "half": total / 2 if total > 2 else None}, {"row": layer.update[0].tolist()}
        )


LAYERS = [
    LayerChange(f"blocks.{block}.{name}", torch.zeros(2, 2), torch.full((2, 2), float(value)))
    for block, name, value in ((0, "q", 1), (0, "v", 2), (1, "q", 3), (1, "v", 0))
]
SUBJECT = {"trial_id": "abc", "label": "task/method", "model": "m", "model_revision": "r"}


def test_layers_of_one_name_are_averaged_and_a_missing_number_does_not_count():
    found = analyse(Size(), LAYERS, SUBJECT)
    lines = [line.split() for line in table(Size(), [found]).splitlines()]
    assert lines[0] == ["projection", "layers", "sum", "half"]
    assert lines[2:] == [["q", "2", "8", "4"], ["v", "2", "4", "4"], ["all", "4", "6", "4"]]
    assert mean_of([None, None]) is None


def test_findings_are_kept_beside_the_records_and_are_no_record(tmp_path):
    store = Store(str(tmp_path))
    store.prepare()
    where = write(analyse(Size(), LAYERS, SUBJECT), store)
    kept = json.loads(store.read_artifact(where))
    assert kept["analysis"] == "size"
    assert kept["subject"] == SUBJECT
    assert kept["layers"][2] == {
        "layer": "blocks.1.q", "values": {"sum": 12.0, "half": 6.0}, "curves": {"row": [3.0, 3.0]}
    }  # fmt: skip
    assert list(store.records()) == []


def test_a_figure_has_a_panel_for_each_projection(tmp_path):
    found = analyse(Size(), LAYERS, SUBJECT)
    figure(Size(), [found, found], tmp_path / "f.svg")
    text = (tmp_path / "f.svg").read_text()
    assert text.startswith("<?xml")
    assert text.count('id="axes_') == 3


def test_an_analysis_that_returns_something_else_than_it_declares_is_refused():
    class Wrong(Size):
        def look(self, layer, generator):
            return LayerFindings({"sum": 1.0})

    with pytest.raises(HarnessError, match=r"'size' returned sum of layer 'blocks.0.q'; it declares sum, half"):
        analyse(Wrong(), LAYERS, SUBJECT)


def test_nothing_to_look_at_is_an_error():
    with pytest.raises(HarnessError, match="no linear layer"):
        analyse(Size(), [], SUBJECT)


@pytest.mark.parametrize(("name", "said"), [("f.zzz", "must end in one of"), ("none/f.svg", "there is no folder")])
def test_a_picture_that_could_not_be_drawn_is_refused_before_anything_is_measured(tmp_path, name, said):
    with pytest.raises(UsageError, match=said):
        check_figure(tmp_path / name)
    check_figure(tmp_path / "f.png")


def test_without_curves_a_figure_has_bars_of_every_number(tmp_path):
    class Plain(Size):
        curves: ClassVar = {}

        def look(self, layer, generator):
            return LayerFindings(super().look(layer, generator).values)

    found = analyse(Plain(), LAYERS, SUBJECT)
    figure(Plain(), [found, found], tmp_path / "f.svg")
    drawn = (tmp_path / "f.svg").read_text(encoding="utf-8")
    assert drawn.count('id="axes_') == len(Plain.columns)
    for text in (*Plain.columns, "q", "v", "all", "task/method"):
        assert f"<!-- {text} -->" in drawn
