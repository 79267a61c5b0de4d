"""The pictures of the page on analyses are drawn from findings alone, and nothing is left out in silence."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import asdict, replace
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
    monkeypatch.setitem(sys.modules, "pictures", module)
    monkeypatch.syspath_prepend(FILE.parent)
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
                write(
                    analyse(analysis, layers, {**about, "model": "m", "model_revision": "r"}),
                    store,
                    asdict(analysis.config),
                )


PAGE = """# Analyses

## On a small model

Old.

## Your own

Kept.
"""


def test_every_picture_and_the_page_beside_them_are_written(tmp_path, pictures, capsys):
    keep(tmp_path, pictures, without="full")
    (tmp_path / "analyses.md").write_text(PAGE)
    pictures.draw(tmp_path, tmp_path)
    page = (tmp_path / "analyses.md").read_text(encoding="utf-8")
    drawn = sorted(path.name for path in tmp_path.glob("*.png"))
    assert drawn == sorted(f"analysis-{picture.analysis}.png" for picture in pictures.PICTURES)
    assert all(f"({name})" in page for name in drawn)
    assert page.startswith("# Analyses\n\n## On a small model\n")
    assert page.endswith("\n\n## Your own\n\nKept.\n")
    assert "Old." not in page
    assert page.count("agree") >= 5
    assert "full fine-tuning" not in page  # it is not there, and nothing is said of it
    said = capsys.readouterr().out
    for picture in pictures.PICTURES:
        assert f"## {picture.analysis}" in said
        assert all(method in said for method in picture.methods if method != "full")


def test_the_page_says_what_the_numbers_say(tmp_path, pictures):
    from page import section, verdict

    assert [verdict(each) for each in ([True], [True, False], [False, False])] == [
        "**agrees**", "**agrees in part**", "**does not agree**"
    ]  # fmt: skip
    keep(tmp_path, pictures)
    found = {each.analysis: pictures.of_picture(tmp_path, each) for each in pictures.PICTURES}

    def text(name, *changes):
        """Return the page's words on an analysis, with numbers of single methods replaced."""
        several = []
        for each in found[name]:
            values = next((new for method, new in changes if method == each.name), {})
            layers = {k: replace(v, values={**v.values, **values}) for k, v in each.layers.items()}
            several.append(replace(each, layers=layers))
        recipe = {"steps": 600, "batch_size": 16, "max_length": 256}
        return (
            section({**found, name: several}, recipe).partition(f"### {name}")[2].partition("###")[0].replace("\n", " ")
        )

    many, few = {"large": 40.0}, {"large": 10.0}
    rest = ("mora", many), ("lora", few)
    assert "ReMoRA 40.0" in text("spectrum", *rest, ("remora", many), ("relora", few))
    assert "**agrees**. MELoRA's" in text("spectrum", *rest, ("remora", many), ("relora", few))
    assert "**agrees in part**. MELoRA's" in text("spectrum", *rest, ("remora", few), ("relora", few))
    assert "(figure 3): **does not agree**" in text("spectrum", *rest, ("melora", few))
    assert "**agrees**" in text("amplification", ("milora", {"amplification": 0.1}), ("lora", {"amplification": 0.2}))
    assert "**does not agree**" in text(
        "amplification", ("milora", {"amplification": 0.3}), ("lora", {"amplification": 0.2})
    )
    sides = {"left_top": 0.1, "left_bottom": 0.1, "left_random": 0.1}
    told = {"milora": {**sides, "left_bottom": 0.6}, "pissa": {**sides, "left_top": 0.6}, "lora": sides}
    assert "**agrees**" in text("subspace", *told.items())
    assert "**agrees in part**, not of LoRA" in text("subspace", *{**told, "lora": told["pissa"]}.items())


def test_other_ranks_of_the_error_of_quantising_are_in_the_text_and_not_in_the_picture(tmp_path, pictures):
    keep(tmp_path, pictures)
    store, registry = Store(str(tmp_path)), build_registry(())
    kind = registry.analysis("quantisation-error")
    layer = LayerChange("0.q_proj", torch.randn(70, 66, generator=torch.Generator().manual_seed(0)))
    for settings in ({"r": 4}, {"r": 4, "iterations": 2}):
        found = analyse(kind(kind.Config(**settings)), [layer], {"model": "m", "model_revision": "r"})
        write(found, store, asdict(kind.Config()))
    assert [each.settings["r"] for each in pictures.kept(tmp_path, "quantisation-error")] == [16]
    (other,) = pictures.other_ranks(tmp_path)
    assert (other.settings["r"], other.settings["iterations"]) == (4, 1)
    (tmp_path / "analyses.md").write_text(PAGE)
    pictures.draw(tmp_path, tmp_path)
    page = " ".join((tmp_path / "analyses.md").read_text().split())
    assert page.count("at r = 4") == 1


def test_a_missing_trial_is_named(tmp_path, pictures):
    keep(tmp_path, pictures, without="mora")
    with pytest.raises(SystemExit, match="no findings of spectrum on trials of mora: measure first"):
        pictures.draw(tmp_path, tmp_path)
    with pytest.raises(SystemExit, match=r"no finished trial of lora, mora on .*smollm2-finance.toml"):
        pictures.measure(tmp_path, "m", 1)
