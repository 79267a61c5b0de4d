"""An edited plug-in is another one; one that was installed is what its distribution says."""

from __future__ import annotations

import base64
import hashlib
import sys
from importlib.metadata import Distribution

import pytest

from harness.planning import identity
from harness.planning.identity import identify, sources


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of plain files on the path: ``mine`` imports ``own.near`` late, and ``own.far`` not at all."""
    files = {
        "mine.py": "import json\nSCALE = 1\ndef late():\n    from own import near\n",
        "own/__init__.py": "",
        "own/near.py": "from . import deep\n",
        "own/deep.py": "",
        "own/far.py": "raise RuntimeError('nobody imports this')\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    identity._is_own.cache_clear()  # as in another process
    return tmp_path


def install(site, *names):
    """Write down ``names`` as the files of a built distribution."""
    info = site / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    lines = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip('=')},{len(content)}"
        for name in names
        for content in [(site / name).read_bytes()]
    ]
    (info / "RECORD").write_text("\n".join([*lines, "mine.pth,,"]) + "\n")
    return Distribution.at(info)


def test_a_plug_in_is_its_file_and_what_it_imports_from_plain_files(site):
    assert sorted(sources("mine")) == [
        "mine/mine.py", "own.deep/deep.py", "own.near/near.py", "own/__init__.py",
    ]  # fmt: skip
    assert not {"own", "own.near"} & set(sys.modules), "looking imports nothing"


@pytest.mark.parametrize("name", ["mine.py", "own/__init__.py", "own/near.py", "own/deep.py"])
def test_whatever_is_edited_the_plug_in_is_another(site, name):
    before = identify(None, "mine")
    assert before.startswith("unknown==0+sha256.")
    with (site / name).open("a") as file:
        file.write("SCALE = 50\n")
    assert identify(None, "mine") != before
    (site / name).write_text((site / name).read_text().replace("SCALE = 50\n", ""))
    assert identify(None, "mine") == before


def test_what_it_does_not_import_is_not_part_of_it(site):
    before = identify(None, "mine")
    (site / "own" / "far.py").write_text("SCALE = 50\n")
    assert identify(None, "mine") == before


def test_of_a_package_every_file_counts(site):
    before = identify(None, "own")
    (site / "own" / "words.txt").write_text("data")
    assert identify(None, "own") != before


def test_a_built_distribution_is_its_version_until_it_is_edited_in_place(site):
    distribution = install(site, "mine.py", "own/__init__.py", "own/near.py", "own/deep.py")
    assert identify(distribution, "mine") == "mine==1.0"
    (site / "own" / "deep.py").write_text("SCALE = 50\n")
    assert identify(distribution, "mine").startswith("mine==1.0+sha256.")


def test_what_was_installed_to_a_folder_of_any_name_is_not_part_of_a_plug_in(site):
    """As ``pip install --target`` does. Otherwise every library beside it would count, and not everywhere alike."""
    distribution = install(site, "own/__init__.py", "own/near.py", "own/deep.py", "own/far.py")
    assert sorted(sources("mine")) == ["mine/mine.py"]
    (site / "plain.py").write_text("import own.near\nimport mine\n")
    assert sorted(sources("plain")) == ["mine/mine.py", "plain/plain.py"]
    assert identify(distribution, "mine").startswith("mine==1.0+sha256."), "whose own file it did not write down"


def test_a_distribution_whose_source_is_elsewhere_says_nothing_of_it(site):
    """As an editable install: its record lists a path file, not the source."""
    assert identify(install(site), "mine").startswith("mine==1.0+sha256.")


def test_a_module_that_is_gone_has_an_identity_all_the_same(site):
    assert identify(None, "nowhere").startswith("unknown==0+sha256.")
