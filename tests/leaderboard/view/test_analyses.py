"""Findings of analyses have a page each: a picture, and every number of every trial, from plain files."""

from __future__ import annotations

import base64
import dataclasses
import json
import re

import pytest
from click.testing import CliRunner

from harness.contract.analysis import LayerFindings
from harness.results.findings import About, Findings
from harness_leaderboard.command import leaderboard
from harness_leaderboard.load import load
from harness_leaderboard.view.analyses import analysis_pages

HOSTILE = "<script>alert(1)</script> $x^{2$ \\input{a}"
COLUMNS = {"size": "of it", "rest": "of the rest"}
ABOUT = About(title="Sizes", paper="https://example.org/paper", claim="it grows, figure 1", columns=COLUMNS)


def found(label, sizes, *, trial_id="", about=ABOUT, settings=None):
    layers = {
        f"{block}.{projection}": LayerFindings({"size": size, "rest": None})
        for (block, projection), size in zip(((0, "q"), (0, "v"), (1, "q")), sizes, strict=True)
    }
    subject = {"trial_id": trial_id or label, "label": label, "model": "nano", "model_revision": "0"}
    return Findings("size", settings or {"r": 8}, subject, layers, about)


LORA, MORA = found("glue/rte/lora/lr1/s0", (1.0, 5.0, 3.0)), found("glue/rte/mora/lr1/s0", (2.0, 6.0, 4.0))


def test_a_page_has_the_paper_s_statement_and_means_by_projection_and_links_to_trials_that_are_shown():
    (page,) = analysis_pages([MORA, LORA], {"glue/rte/lora/lr1/s0"})
    assert (page.title, page.name, page.folder) == ("Sizes", "size", "analyses")
    assert ("What the paper says", "it grows, figure 1", "") in page.facts
    assert ("Paper", "https://example.org/paper", "https://example.org/paper") in page.facts
    ((heading, (grid,)),) = page.grids
    assert heading == "glue/rte, nano, r=8"
    cells = [[cell.text for cell in row] for row in grid.rows]
    assert cells == [
        ["lora", "q", "2", "2", "—"], ["lora", "v", "1", "5", "—"], ["lora", "all", "3", "3", "—"],
        ["mora", "q", "2", "3", "—"], ["mora", "v", "1", "6", "—"], ["mora", "all", "3", "4", "—"],
    ]  # fmt: skip
    assert [row[0].link for row in grid.rows] == ["trial.html#glue/rte/lora/lr1/s0"] * 3 + [""] * 3
    assert page.pictures[heading].png.startswith(b"\x89PNG")


def test_what_cannot_be_compared_stands_apart():
    other = [found("uuid/lora/lr1/s0", (1, 1, 1)), found("glue/rte/lora/lr1/s1", (1, 1, 1), settings={"r": 4})]
    base = Findings("size", {"r": 8}, {"model": "nano", "model_revision": "0"}, LORA.layers, ABOUT)
    (page,) = analysis_pages([LORA, *other, base], ())
    assert {heading for heading, _ in page.grids} == {
        "glue/rte, nano, r=8", "uuid, nano, r=8", "glue/rte, nano, r=4", "nano, r=8"
    }  # fmt: skip


def test_of_many_trials_a_picture_shows_one_of_each_method_first_and_says_how_many():
    several = [found(f"t/{method}/lr1/s{seed}", (1, 2, 3)) for method in "abcd" for seed in range(3)]
    (page,) = analysis_pages(several, ())
    (picture,) = page.pictures.values()
    assert "9 of 12 are drawn" in picture.text
    assert len(page.grids[0][1][0].rows) == 12 * 3


def test_the_site_has_the_page_with_its_picture_and_what_findings_say_is_text(make_files, make_record, tmp_path):
    hostile = dataclasses.replace(ABOUT, title=HOSTILE, claim=HOSTILE, paper="javascript:alert(1)")
    files = make_files([make_record()], tmp_path, findings=[found(f"t/{HOSTILE}/lr1/s0", (1, 2, 3), about=hostile)])
    (name,) = [each for each in files if each.startswith("analyses/")]
    assert HOSTILE not in files[name]
    assert 'href="javascript' not in files[name]
    assert f'href="{name}"' in files["index.html"]
    (picture,) = re.findall(r'src="data:image/png;base64,([^"]+)"', files[name])
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    assert not [each for each in make_files([make_record()], tmp_path) if each.startswith("analyses/")]


def test_findings_are_read_with_the_records_and_what_is_none_is_passed_over(tmp_path, make_record):
    record = make_record()
    (tmp_path / f"{record.trial_id}.json").write_text(record.dumps())
    folder = tmp_path / "analyses"
    folder.mkdir()
    (folder / "size-a.json").write_text(json.dumps(LORA.to_json()))
    (folder / "size-b.json").write_text(json.dumps({**LORA.to_json(), "about": {}}))
    (folder / "size-c.json").write_text("{")
    (folder / "size-d.json").write_text(json.dumps({**LORA.to_json(), "layers": [{"layer": "q", "values": {"a": []}}]}))
    loaded = load([str(tmp_path)])
    assert loaded.findings == (LORA,)
    assert sorted(name.rpartition("-")[2] for name in loaded.passed_over) == ["b.json", "c.json", "d.json"]
    assert "run `harness analyse` again" in next(why for name, why in loaded.passed_over.items() if "-b" in name)


@pytest.mark.parametrize("number", [None, 0.000123456])
def test_a_number_that_is_missing_says_why(number):
    (page,) = analysis_pages([found("t/lora/lr1/s0", (number, 1, number))], ())
    cell = page.grids[0][1][0].rows[0][3]
    assert (cell.text, bool(cell.note)) == (("—", True) if number is None else ("0.0001235", False))


def test_what_the_page_shows_is_in_the_json_too_without_its_picture(tmp_path, make_record):
    record = make_record()
    (tmp_path / f"{record.trial_id}.json").write_text(record.dumps())
    (tmp_path / "analyses").mkdir()
    (tmp_path / "analyses" / "size-a.json").write_text(json.dumps(LORA.to_json()))
    done = CliRunner().invoke(leaderboard, ["--results", str(tmp_path), "--json"], catch_exceptions=False)
    (page,) = json.loads(done.stdout)["analyses"]
    assert page["grids"][0][1][0]["rows"][0][0]["text"] == "glue/rte/lora/lr1/s0"
    assert list(page["pictures"].values()) == [{"text": "Sizes, as in the table below."}]
