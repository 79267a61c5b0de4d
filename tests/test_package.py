"""What is shipped: the wheel's content, the versions, and the pins that a benchmark is repeated with."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import harness

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = {"harness", "harness_plugins", "harness_benchmarks", "harness_leaderboard"}
LARGEST_BYTES = 4 * 2**20


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """Build the wheel from the checkout, as a release does."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_puts_only_our_names_into_site_packages(wheel):
    top = {name.partition("/")[0] for name in wheel.namelist()}
    assert top == {*PACKAGES, f"peft_harness-{harness.__version__}.dist-info"}


def test_every_package_is_typed(wheel):
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(wheel.namelist())


def test_the_wheel_holds_what_is_read_at_run_time(wheel):
    """Every file of the four packages that is not Python: the base model, suites, the page's template and style."""
    folders = {
        "harness": ".",
        "harness_plugins": "plugins",
        "harness_benchmarks": "benchmarks",
        "harness_leaderboard": "leaderboard",
    }
    files = {
        path.relative_to(ROOT / root).as_posix()
        for package, root in folders.items()
        for path in (ROOT / root / package).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert "harness/bases/nano/model.safetensors" in files
    assert files <= set(wheel.namelist())


def test_no_file_of_the_wheel_is_large(wheel):
    assert {each.filename: each.file_size for each in wheel.infolist() if each.file_size > LARGEST_BYTES} == {}


def test_the_wheel_brings_its_licence_and_no_tests(wheel):
    names = wheel.namelist()
    (licence,) = [name for name in names if name.endswith("licenses/LICENSE")]
    assert "Apache License" in wheel.read(licence).decode()
    assert [name for name in names if "test_" in name or "conftest" in name] == []


def test_one_version_everywhere():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert PROJECT["project"]["version"] == harness.__version__ == metadata.version("peft-harness")
    assert re.search(rf"^## {re.escape(harness.__version__)}\b", changes, re.MULTILINE)


# --- pins -------------------------------------------------------------------------------------------------------------


def pins() -> dict[str, str]:
    """Return {package: version} of constraints.txt; anything but an exact pin is an error."""
    lines = [line.strip() for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()]
    found = {}
    for line in filter(None, lines):
        if not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s;+]+)", line)
            assert match, f"constraints.txt: {line!r} is not NAME==VERSION"
            found[canonicalize_name(match[1])] = match[2]
    return found


def declared() -> list[Requirement]:
    project = PROJECT["project"]
    extras = [each for names in project["optional-dependencies"].values() for each in names]
    texts = [*project["dependencies"], *extras, *PROJECT["build-system"]["requires"], "tox"]
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize("requirement", declared(), ids=str)
def test_every_declared_dependency_is_pinned_within_its_range(requirement):
    version = pins().get(canonicalize_name(requirement.name))
    assert version is not None, f"pin {requirement.name} in constraints.txt"
    assert requirement.specifier.contains(version)


def needed(name: str, extra: str, seen: set[tuple[str, str]]) -> None:
    """Add what an installed distribution needs here, and what that needs."""
    if (name, extra) in seen:
        return
    seen.add((name, extra))
    try:
        requirements = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return  # for another platform, or an extra that is not installed here
    for requirement in map(Requirement, requirements):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            for each in ("", *requirement.extras):
                needed(canonicalize_name(requirement.name), each, seen)


def test_everything_that_a_run_needs_is_pinned():
    seen: set[tuple[str, str]] = set()
    needed("peft-harness", "", seen)
    names = {name for name, _ in seen} - {"peft-harness"}
    assert len(names) > 50
    # torch pins its CUDA libraries itself, version by version.
    from_torch = {name for name in names if name.startswith(("nvidia-", "cuda-")) or name == "triton"}
    assert names - from_torch - set(pins()) == set()
