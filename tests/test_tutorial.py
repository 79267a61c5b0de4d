"""The tutorial: every cell of the notebook runs, in order, in a folder of its own, and shows what the text says."""

from __future__ import annotations

import ast
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from harness.results.store import Store

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"
MARK = "--- cell "


def cells():
    """Return the source of every cell of code."""
    found = [each for each in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if each["cell_type"] == "code"]
    assert all(each["outputs"] == [] for each in found), "a notebook is kept without outputs"
    return ["".join(each["source"]).replace("\\\n", " ") for each in found]


def command(line):
    """Return what a line that begins with ``!`` runs: our command by this Python, pip without touching its packages."""
    words = shlex.split(line[1:])
    if words[0] == "harness":
        return [sys.executable, "-m", *words]
    assert words[:2] == ["pip", "install"], line
    return [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index",
            "--target", "installed", words[2]]  # fmt: skip


def script():
    """Return the notebook as a script that prints each cell's number, and what a notebook would show of it."""
    lines = ["import subprocess as _run"]
    for number, source in enumerate(cells()):
        lines.append(f"print({MARK!r} + '{number}', flush=True)")
        plain = []
        for line in source.splitlines():
            assert not line.startswith("%"), line
            plain.append(f"_run.run({command(line)!r}, check=True)" if line.startswith("!") else line)
        if isinstance(last := ast.parse("\n".join(plain)).body[-1], ast.Expr) and not source.splitlines()[-1][0] == "!":
            value = "\n".join(plain[last.lineno - 1 :])
            plain[last.lineno - 1 :] = [value if value.startswith("print(") else f"print({value}, flush=True)"]
        lines += plain
    return "\n".join(lines)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Return the folder in which the notebook ran, and what each cell showed."""
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / "installed").mkdir()
    path = os.pathsep.join([str(folder / "installed"), *filter(None, sys.path)])
    ended = subprocess.run(
        [sys.executable, "-c", script()], cwd=folder, text=True, capture_output=True, timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3_000:]
    shown = [text.partition("\n")[2] for text in ended.stdout.split(MARK)[1:]]
    return folder, dict(zip(cells(), shown, strict=True))


def shown(done, start):
    """Return what the one cell showed that begins so, or has such a line."""
    (found,) = [text for source, text in done[1].items() if any(each.startswith(start) for each in source.splitlines())]
    return found


@pytest.mark.slow
def test_the_data_and_the_plan_are_shown_before_anything_trains(done):
    text = shown(done, "!harness data show")
    assert "reviews: classification" in text
    assert "⟦good⟧" in text or "⟦bad⟧" in text
    assert shown(done, "import harness").count("to do") == 4


@pytest.mark.slow
def test_what_was_trained_is_shown_compared_and_read_again(done):
    text = shown(done, "results = harness.run")
    assert text.count("complete") == 4
    assert text.count("lora") == text.count("mora") == 2
    means = shown(done, "records = harness.read_results").split()
    assert {"lora", "mora", "score", "adapter_parameters", "train_seconds"} <= set(means)
    (first,) = [line for line in shown(done, 'harness.compare("results")').splitlines() if line.startswith("0")]
    assert "classification/reviews" in first


@pytest.mark.slow
def test_a_recommendation_a_page_and_an_adapter_come_of_it(done):
    text = shown(done, "!harness recommend")
    assert "Recommended for classification/reviews on nano" in text
    assert "over 2 seeds" in text
    page = (done[0] / "site" / "index.html").read_text(encoding="utf-8")
    assert "classification/reviews" in page
    # As a whole model or as PEFT's adapter: of two methods with one score the faster is recommended.
    names: dict[str, object] = {}
    exec(shown(done, "!harness export"), names)
    assert names["model"].config.id2label == {0: "bad", 1: "good"}


@pytest.mark.slow
def test_a_method_of_one_s_own_keeps_the_contract_trains_and_stands_on_the_board(done):
    assert "class MyOwn" in shown(done, "!harness new method")
    assert "my-own: all checks passed" in shown(done, "!harness check")
    records = list(Store(str(done[0] / "results")).records())
    trained = {(each.trial.method, each.trial.seed): each for each in records}
    assert set(trained) == {(name, seed) for name in ("lora", "mora", "my-own") for seed in (0, 1)}
    assert all(each.state == "complete" and each.score is not None for each in records)
    assert trained["my-own", 0].trial.adapter_parameters == trained["lora", 0].trial.adapter_parameters
    assert trained["my-own", 0].trial.plugins["method"].startswith("harness-my-own")
    assert "my-own" in shown(done, "!harness run")
    compared = shown(done, "pairs = harness.compare").splitlines()
    assert sum("my-own" in line for line in compared) == 2
