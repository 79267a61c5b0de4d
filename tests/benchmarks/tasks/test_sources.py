"""What is said of a task's data covers all that it reads, not the first table only."""

from __future__ import annotations

import pytest

from harness.cli.catalogue import describe_task
from harness.data.check import check_data
from harness.planning.registry import build_registry

REGISTRY = build_registry()


@pytest.mark.parametrize("name", REGISTRY.tasks)
def test_every_source_is_described_with_its_revision_and_licence(name):
    task = REGISTRY.task(name)
    text = " ".join(describe_task(REGISTRY, name).split())
    sources = {table.source for recipe in task.recipes.values() for table in task().tables(recipe)}
    for source in sources:
        assert f"{source.hub_id} {source.config}".strip() in text
        assert source.revision in text
        assert source.folder in text
        assert source.licence.split()[0] in text
    assert sources or "generated" in text


def test_a_local_corpus_is_not_called_generated():
    lines = describe_task(REGISTRY, "continual/finance").splitlines()
    assert any(line.startswith("local only") and line.endswith("text/finance") for line in lines)
    assert not any(line.startswith("generated") for line in lines)


def test_the_data_check_shows_every_tables_licence(tmp_path):
    found = {each.table: each.licence for each in check_data({"math": REGISTRY.task("math")}, "paper", tmp_path)}
    assert found["math/gsm8k/test"] == "MIT"
    assert found["wikitext/wikitext-2-raw/wiki.test"] == "CC BY-SA 3.0 / GFDL"
    (generated,) = check_data({"uuid": REGISTRY.task("uuid")}, "smoke", tmp_path)
    assert generated.licence == "generated"
