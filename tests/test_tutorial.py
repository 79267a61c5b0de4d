"""The tutorial: every cell of the notebook runs, in order, in a folder of its own, and shows what the text says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"


def script():
    """Return the notebook as a script: lines that begin with ``!`` are commands, a last expression is printed."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    lines = ["import subprocess as _subprocess", "import sys as _sys"]
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == [], "a notebook is kept without outputs"
        source = "".join(cell["source"]).splitlines()
        for line in source:
            if line.startswith("!harness "):
                command = f"_sys.executable + ' -m {line[1:]}'"
                lines.append(f"_subprocess.run({command}, shell=True, check=True)")
            else:
                assert not line.startswith(("!", "%")), line
                lines.append(line)
        if source[-1].startswith(("harness.", "planned[", "results[")):
            lines[-1] = f"print({source[-1]}, flush=True)"
    return "\n".join(lines)


@pytest.mark.slow
def test_every_cell_of_the_notebook_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", script()], cwd=tmp_path, text=True, capture_output=True, timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3_000:]
    assert done.stdout.count("complete") >= 4, "four trials"
    assert "lora" in done.stdout
    assert (tmp_path / "site" / "index.html").exists()
    assert list((tmp_path / "adapter").glob("*.safetensors"))
    assert "class MyOwn" in done.stdout
