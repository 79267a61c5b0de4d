"""What `harness data check` says of data that is here, on the hub, missing or broken. Nothing is fetched."""

from __future__ import annotations

import gzip
import json

import pytest

from harness import cli
from harness.contract.task import Recipe, Source, Table, Task
from harness.data.check import Presence, check_data, findings_table

MAIN = Source(hub_id="nobody/main", config="plain", revision="abc", folder="main")
SIDE = Source(folder="side")


class Toy(Task):
    name = "toy"

    def tables(self, recipe):
        more = [Table(MAIN, "more")] if recipe.steps > 1 else []
        return [Table(MAIN, "train"), *more, Table(SIDE, "test", needed=False)]

    recipes = {"smoke": Recipe(steps=1), "paper": Recipe(steps=2)}  # noqa: RUF012


class Generated(Task):
    name = "generated"
    recipes = {"smoke": Recipe()}  # noqa: RUF012


@pytest.fixture(autouse=True)
def nothing_is_fetched(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("fetched"))
    monkeypatch.setattr("harness.data.tables.is_offline", lambda: False)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def check(data_dir, scale="smoke"):
    return {each.table: each for each in check_data({"toy": Toy}, scale, data_dir)}


def test_rows_of_all_shards_are_counted(tmp_path):
    write(tmp_path / "main/train-00000-of-00002.jsonl.gz", "{}\n{}\n")
    write(tmp_path / "main/train-00001-of-00002.jsonl.gz", "{}\n\n")
    found = check(tmp_path)["main/train"]
    assert (found.presence, found.rows, found.blocks) == (Presence.HERE, 3, False)
    assert found.origin == f"{tmp_path}/main/train-00000-of-00002.jsonl.gz and 1 more"


@pytest.mark.parametrize("name", ["train.json.gz", "train.json", "train.jsonl"])
def test_rows_of_a_list_over_many_lines_are_counted(tmp_path, name):
    write(tmp_path / "main" / name, json.dumps([{"text": "one"}, {"text": "two"}], indent=1))
    assert check(tmp_path)["main/train"].rows == 2


def test_a_missing_table_blocks_where_it_is_needed(tmp_path):
    found = check(tmp_path)
    assert found["main/train"].blocks
    assert "main/train.jsonl" in found["main/train"].advice
    assert "nobody/main" in found["main/train"].advice
    assert found["side/test"].presence is Presence.MISSING
    assert not found["side/test"].blocks
    text = findings_table(list(found.values()))
    assert "missing, optional" in text
    assert text.endswith("0 of 1 tasks have all the data they need\nWithout it: toy")


@pytest.mark.parametrize(("text", "said"), [("", "no rows"), ("cut", "cannot be read")])
def test_a_table_that_cannot_be_read_is_broken(tmp_path, text, said):
    path = tmp_path / "main/train.jsonl.gz"
    write(path, text)
    if text:
        path.write_bytes(path.read_bytes()[:-6])
    found = check(tmp_path)["main/train"]
    assert (found.presence, found.rows, found.blocks) == (Presence.BROKEN, None, True)
    assert str(path) in found.advice
    assert said in found.advice


def test_the_scale_decides_which_tables(tmp_path):
    assert "main/more" not in check(tmp_path)
    assert check(tmp_path, "paper")["main/more"].blocks


def test_without_a_folder_tables_are_on_the_hub_or_missing():
    found = check(None)
    assert found["main/train"].presence is Presence.HUB
    assert found["main/train"].origin == "'nobody/main', configuration 'plain' at abc"
    assert found["main/train"].rows is None
    assert found["side/test"].presence is Presence.MISSING


def test_generated_data_is_always_there(tmp_path):
    (found,) = check_data({"generated": Generated}, "smoke", tmp_path)
    assert (found.presence, found.blocks) == (Presence.GENERATED, False)


def command(capsys, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["harness", "data", "check", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code or 0, capsys.readouterr().out


def test_the_command_says_what_is_there_and_exits_by_it(tmp_path, capsys, monkeypatch):
    write(tmp_path / "glue/rte/train.jsonl", "{}\n" * 7)
    code, out = command(capsys, monkeypatch, "--data-dir", tmp_path, "--task", "uuid,glue/rte", "--json")
    assert code == 1
    rows = {(each["task"], each["table"]): each for each in json.loads(out)}
    assert rows["uuid", ""]["presence"] == "generated"
    assert rows["glue/rte", "glue/rte/train"]["rows"] == 7
    assert rows["glue/rte", "glue/rte/validation"]["presence"] == "missing"
    write(tmp_path / "glue/rte/validation.jsonl", "{}\n")
    code, out = command(capsys, monkeypatch, "--data-dir", tmp_path, "--task", "uuid,glue/rte")
    assert code == 0
    assert "2 of 2 tasks have all the data they need" in out


def test_a_scale_that_no_task_has_is_refused(capsys, monkeypatch):
    assert command(capsys, monkeypatch, "--scale", "huge", "--task", "uuid") == (2, "")


@pytest.mark.parametrize("scale", ["smoke", "paper"])
def test_every_registered_task_names_its_tables(capsys, monkeypatch, scale):
    _, out = command(capsys, monkeypatch, "--scale", scale, "--json")
    found = {(each["task"], each["table"]) for each in json.loads(out)}
    assert {task for task, table in found if not table} == {"uuid"}  # generated
    assert {("c4", "text/c4/validation"), ("glue/mnli", "glue/mnli/validation_mismatched")} <= found
    assert (("math", "math/metamath/train") in found) == (scale == "paper")
