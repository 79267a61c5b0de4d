"""A stranger's distribution: one file and a ``pyproject.toml`` are enough to be found and to pass the kit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "example_plugin"

SCRIPT = """
import sys
from harness.planning.registry import build_registry
from harness.testing import check_method

registry = build_registry()
method = registry.methods["scale-vector"]
origin = registry.origins["method", "scale-vector"]
print("from", origin.pin, "at", origin.file)
# y = (1 + v) W x has one number for each of the 7 outputs.
print("parameters", method().trainable_parameters(5, 7))
check_method(method, lambda result: print(result.state, result.check))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder into which pip installed the wheel that it built from the example."""
    folder = tmp_path_factory.mktemp("example")
    # hatchling would take a .gitignore above into account, and pip builds in place: work on a copy.
    copy = shutil.copytree(SOURCE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([*command, "--target", str(folder / "site"), str(copy)], check=True)
    return folder / "site"


def run(site: Path, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh interpreter that sees the example's wheel besides what this one sees."""
    path = os.pathsep.join([str(site), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_an_installed_plugin_is_registered_and_passes_the_kit(site):
    result = run(site, SCRIPT)
    assert result.returncode == 0, result.stderr
    first, second, *checks = result.stdout.splitlines()
    assert first == f"from harness-scale-vector==0.1.0 at {site / 'harness_scale_vector.py'}"
    assert second == "parameters 7"
    assert "passed check_stacks_under_vmap" in checks
    assert "not applicable check_budget_knob_is_monotone" in checks
    assert not [line for line in checks if line.startswith("failed")]


@pytest.mark.slow
def test_an_installed_plugin_can_be_blocked(site):
    result = run(site, SCRIPT, HARNESS_BLOCK="scale-vector")
    assert result.returncode != 0
    assert "KeyError: 'scale-vector'" in result.stderr


def test_the_example_is_one_short_file():
    assert [path.name for path in SOURCE.glob("*.py")] == ["harness_scale_vector.py"]
    assert len((SOURCE / "harness_scale_vector.py").read_text().splitlines()) <= 40


def test_the_example_imports_only_public_names():
    lines = (SOURCE / "harness_scale_vector.py").read_text().splitlines()
    assert [line for line in lines if "harness" in line and "import" in line] == [
        "from harness import Adapter, Method, MethodTraits, hookimpl"
    ]
