"""The pictures of the page on analyses are drawn from findings alone, and nothing is left out in silence."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from harness import LayerChange
from harness.planning.registry import build_registry
from harness.results.analysis import analyse
from harness.results.findings import write
from harness.results.store import Store

FILE = Path(__file__).parents[2] / "benchmarks" / "analyses" / "pictures.py"


@pytest.fixture
def pictures(monkeypatch):
    spec = importlib.util.spec_from_file_location("pictures", FILE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "pictures", module)
    spec.loader.exec_module(module)
    return module


def keep(folder, pictures, *, without=""):
    """Keep findings of every analysis about two small layers."""
    generator = torch.Generator().manual_seed(0)
    layers = [
        LayerChange(f"0.{name}", torch.randn(70, 66, generator=generator), torch.randn(70, 66, generator=generator))
        for name in ("q_proj", "v_proj")
    ]
    store, registry = Store(str(folder)), build_registry(())
    store.prepare()
    for picture in pictures.PICTURES:
        analysis = registry.analysis(picture.analysis)()
        for method in picture.methods or ("",):
            about = {"trial_id": method, "label": f"{pictures.TASK}/{method}/lr0.1/s0"} if method else {}
            if method != without or not method:
                write(analyse(analysis, layers, {**about, "model": "m", "model_revision": "r"}), store)


def test_every_picture_of_the_page_is_drawn_and_its_means_printed(tmp_path, pictures, capsys):
    keep(tmp_path, pictures)
    pictures.draw(tmp_path, tmp_path)
    page = (FILE.parents[2] / "docs" / "analyses.md").read_text(encoding="utf-8")
    drawn = sorted(path.name for path in tmp_path.glob("*.png"))
    assert drawn == sorted(f"analysis-{picture.analysis}.png" for picture in pictures.PICTURES)
    assert all(f"({name})" in page for name in drawn)
    said = capsys.readouterr().out
    for picture in pictures.PICTURES:
        assert f"## {picture.analysis}" in said
        assert all(method in said for method in picture.methods)


def test_a_missing_trial_is_named(tmp_path, pictures):
    keep(tmp_path, pictures, without="remora")
    with pytest.raises(SystemExit, match="no findings of spectrum on trials of remora: measure first"):
        pictures.draw(tmp_path, tmp_path)
    with pytest.raises(SystemExit, match=r"no finished trial of lora, relora, .*smollm2-finance.toml"):
        pictures.measure(tmp_path, "m", 1)
