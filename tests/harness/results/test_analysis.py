"""Analyses go through the layers of trials and base models, and what they find is kept and shown."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from harness import Analysis, LayerChange, LayerFindings
from harness.errors import HarnessError
from harness.results.analysis import analyse
from harness.results.findings import mean_of, read, table, write
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
    lines = [line.split() for line in table([found]).splitlines()]
    assert lines[0] == ["projection", "layers", "sum", "half"]
    assert lines[2:] == [["q", "2", "8", "4"], ["v", "2", "4", "4"], ["all", "4", "6", "4"]]
    assert mean_of([None, None]) is None


def test_findings_are_kept_beside_the_records_and_are_no_record(tmp_path):
    store = Store(str(tmp_path))
    store.prepare()
    where = write(analyse(Size(), LAYERS, SUBJECT), store, {})
    kept = json.loads(store.read_artifact(where))
    assert kept["analysis"] == "size"
    assert kept["subject"] == SUBJECT
    assert kept["layers"][2] == {
        "layer": "blocks.1.q", "values": {"sum": 12.0, "half": 6.0}, "curves": {"row": [3.0, 3.0]}
    }  # fmt: skip
    assert list(store.records()) == []


def test_findings_with_other_settings_are_kept_beside_the_usual_ones(tmp_path):
    store = Store(str(tmp_path))
    store.prepare()
    found = analyse(Size(), LAYERS, SUBJECT)
    names = [write(replace(found, settings=settings), store, {"r": 8}) for settings in ({"r": 8}, {"r": 4}, {"r": 4})]
    assert names[0] == "analyses/size-abc.json"
    assert names[1] == names[2] != names[0]
    assert {read(store.read_artifact(name)).settings["r"] for name in names} == {8, 4}


def test_kept_findings_are_read_back_and_those_of_another_format_are_refused(tmp_path):
    store = Store(str(tmp_path))
    store.prepare()
    found = analyse(Size(), LAYERS, SUBJECT)
    content = store.read_artifact(write(found, store, {}))
    assert read(content) == found
    with pytest.raises(HarnessError, match="findings of format 9 cannot be read; this harness writes 1"):
        read(json.dumps({**json.loads(content), "format": 9}).encode())


def test_an_analysis_that_returns_something_else_than_it_declares_is_refused():
    class Wrong(Size):
        def look(self, layer, generator):
            return LayerFindings({"sum": 1.0})

    with pytest.raises(HarnessError, match=r"'size' returned sum of layer 'blocks.0.q'; it declares sum, half"):
        analyse(Wrong(), LAYERS, SUBJECT)


def test_nothing_to_look_at_is_an_error():
    with pytest.raises(HarnessError, match="no linear layer"):
        analyse(Size(), [], SUBJECT)
