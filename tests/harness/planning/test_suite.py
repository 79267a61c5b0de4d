"""Suites: what a TOML file may say, and what is said of mistakes in it."""

from __future__ import annotations

import pytest

from harness.errors import UsageError
from harness.planning.suite import Suite, Words, build_suite, read_suite


def write(tmp_path, text):
    path = tmp_path / "weekly.toml"
    path.write_text(text)
    return path


def test_a_suite_is_read_with_its_defaults(tmp_path):
    lists = 'tasks = ["uuid"]\nseeds = [0, 5]\nlearning_rates = [1, 3e-4]\n'
    suite = read_suite(write(tmp_path, f"{lists}[recipe]\nsteps = 7\n[published.uuid]\nlora = 0.5"))
    assert suite == Suite(
        tasks=("uuid",),
        seeds=(0, 5),
        learning_rates=(1.0, 3e-4),
        recipe={"steps": 7},
        published={"uuid": {"lora": 0.5}},
    )
    assert [type(rate) for rate in suite.learning_rates] == [float, float]
    assert (suite.methods, suite.budgets, suite.scale, suite.tune) == (("all",), ("lora:r=8",), "smoke", 0)


def test_the_command_line_overrides_a_file(tmp_path):
    path = write(tmp_path, 'tasks = ["uuid"]\nscale = "paper"')
    assert read_suite(path, {"scale": "small"}) == Suite(tasks=("uuid",), scale="small")


def test_exclusions_alone_leave_methods_out_of_those_of_the_file_or_of_all(tmp_path):
    path = write(tmp_path, 'tasks = ["uuid"]\nmethods = ["lora", "mora"]\n[rates]\nlora = [1e-3]')
    found = read_suite(path, {"methods": ["-mora"]})
    assert (found.methods, found.rates) == (("lora", "mora", "-mora"), {"lora": (1e-3,)})
    assert read_suite(path, {"methods": ["dora", "lora", "-lora"]}).methods == ("dora", "lora", "-lora")
    assert build_suite({"tasks": ["uuid"], "methods": ["-full"]}).methods == ("all", "-full")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tasks = [", "weekly.toml"),
        ("\x00", "weekly.toml"),
        ('task = ["uuid"]', r"unknown key 'task'; known: .*tasks"),
        ('tasks = "uuid"', "tasks='uuid' is not a list of texts"),
        ("tasks = [1]", r"tasks=\[1\] is not a list of texts"),
        ('seeds = ["a"]', "seeds=.*not a list of numbers"),
        ("seeds = [true]", "seeds=.*not a list of numbers"),
        ("seeds = [0.5]", "seeds=.*not a list of numbers"),
        ("scale = 3", "scale=3 is not a text"),
        ('tune = "5"', "tune='5' is not a whole number"),
        ('tolerance = "1%"', "tolerance='1%' is not a number"),
        ("recipe = 3", "recipe=3 is not a table"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path, text, said):
    with pytest.raises(UsageError, match=rf"weekly\.toml.*{said}|{said}"):
        read_suite(write(tmp_path, text))


def test_rates_and_models_that_are_asked_for_take_the_place_of_the_files(tmp_path):
    given = read_suite(
        write(tmp_path, 'tasks = ["uuid"]\ntune = 5\ntune_seeds = 4\nhalving = true'), {"learning_rates": [1e-3]}
    )
    assert (given.learning_rates, given.tune, given.tune_seeds, given.halving) == ((1e-3,), 0, 1, False)
    searched = read_suite(write(tmp_path, 'tasks = ["uuid"]\nlearning_rates = [1e-3]'), {"tune": 5})
    assert (searched.learning_rates, searched.tune) == ((), 5)
    moved = read_suite(write(tmp_path, 'tasks = ["uuid"]\nmodel = "a/b"\nrevision = "abc"'), {"model": "nano"})
    assert (moved.model, moved.revision) == ("nano", None)


def test_what_the_command_line_overrides_is_called_by_its_option(tmp_path):
    path = write(tmp_path, 'tasks = ["uuid"]')
    with pytest.raises(UsageError, match="--tune 1 must"):
        read_suite(path, {"tune": 1}, Words({"tune": "--tune"}))
    path = write(tmp_path, 'tasks = ["uuid"]\ntune = 1')
    with pytest.raises(UsageError, match="tune=1 must"):
        read_suite(path, {"tune": 3}, Words({"tune": "--tune"}))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"none\.toml"):
        read_suite(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": []}, "no task given"),
        ({"methods": []}, "methods is empty"),
        ({"budgets": []}, "budgets is empty"),
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": [1, 1]}, "names one twice"),
        ({"tasks": ["uuid", "uuid"]}, "names one twice"),
        ({"learning_rates": [1e-3, 0.001]}, "names one twice"),
        ({"learning_rates": [1, 1.0]}, "names one twice"),
        ({"seeds": [-1]}, "whole numbers from 0 to"),
        ({"learning_rates": [0.0]}, "must be numbers > 0"),
        ({"learning_rates": [float("nan")]}, "must be numbers > 0"),
        ({"learning_rates": [float("inf")]}, "must be numbers > 0"),
        ({"tune": 1}, "tune=1 must be 0 .off. or from 2 to 50"),
        ({"tune": -3}, "tune=-3 must be 0 .off. or from 2 to 50"),
        ({"tune": 3, "learning_rates": [1e-3]}, "not both"),
        ({"tolerance": 0.0}, "between 0 and 1"),
        ({"tolerance": 1.0}, "between 0 and 1"),
        ({"precision": "float16"}, "auto, float32 or bfloat16"),
    ],
)
def test_values_that_make_no_sense_are_refused(changes, said):
    with pytest.raises(UsageError, match=said):
        build_suite({"tasks": ["uuid"], **changes})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_seeds": 5}, "max_seeds=5 is where until_separated stops"),
        ({"until_separated": 0}, r"until_separated=0.0 must be a number of points > 0"),
        ({"until_separated": -1}, r"until_separated=-1.0 must be a number of points > 0"),
        ({"until_separated": 5}, "one seed tells nothing apart"),
        ({"until_separated": 5, "seeds": [0, 1, 2], "max_seeds": 3}, "max_seeds=3 .* more than the 3 seeds"),
        ({"until_separated": 5, "seeds": [0, 2**32 - 1]}, "no seeds are left above 4294967295"),
    ],
)
def test_a_plan_of_looks_that_cannot_be_is_refused(given, said):
    with pytest.raises(UsageError, match=said):
        build_suite({"tasks": ["uuid"], **given})
