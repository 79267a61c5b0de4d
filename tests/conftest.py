"""What holds for every test: Hypothesis does not judge how fast the machine is. And a plugin that makes trouble."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


LONG = {  # files of twenty seconds and more that would be among the last to begin
    "test_tutorial.py", "test_docs.py", "test_conformance.py", "test_mlflow.py", "test_schedule.py",
    "test_site_in_browser.py",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long: if it came last, the other processes would have nothing to do beside it."""
    items.sort(key=lambda item: item.path.name not in LONG)


def pytest_collection_finish() -> None:
    """Take what the tests' imports made out of every later garbage collection: it is most of the heap, and stays."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def trouble(tmp_path_factory) -> Iterator[pytest.MonkeyPatch]:
    """Install the trouble-making plugin, here and in every process that is started from here."""
    site = tmp_path_factory.mktemp("trouble")
    shutil.copy(Path(__file__).parent / "harness" / "trouble_plugin" / "harness_trouble.py", site)
    info = site / "harness_trouble-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: harness-trouble\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[harness]\ntrouble = harness_trouble\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield patch
    sys.modules.pop("harness_trouble", None)
