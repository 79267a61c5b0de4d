"""Settings: what a field allows, words that stand for a value, and what older suites and records said with 0."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import pytest

from harness.contract.setting import MethodConfig, describe_range, setting
from harness.contract.task import Recipe
from harness.contract.trial import Trial
from harness.errors import ConfigError
from harness.planning.registry import build_registry
from harness.results.frame import render_show

REGISTRY = build_registry()


@dataclass(frozen=True)
class Config(MethodConfig):
    scale: float | Literal["auto"] = setting("auto", "size", kind=float, formerly=0, minimum=1e-6)
    rows: int | Literal["all"] = setting("all", "how many", kind=int, minimum=0)


def test_a_word_stands_for_a_value():
    assert (Config().scale, Config().rows) == ("auto", "all")
    assert (Config(scale=2).scale, Config(scale=0.5, rows=0).rows) == (2, 0)
    scale, rows = map(describe_range, dataclasses.fields(Config))
    assert (scale, rows) == ("'auto' or a float >= 1e-06", "'all' or an int >= 0")


@pytest.mark.parametrize(
    "given", [{"scale": "all"}, {"scale": -1.0}, {"scale": True}, {"scale": float("nan")}, {"rows": 1.5}, {"rows": "0"}]
)
def test_other_words_and_values_out_of_range_are_refused(given):
    ((name, value),) = given.items()
    with pytest.raises(ConfigError, match=rf"Config: {name}={value!r} is not allowed; give '(auto|all)' or an?"):
        Config(**given)


def test_what_older_suites_said_with_a_number_is_the_word():
    assert (Config(scale=0).scale, Config(scale=0.0).scale) == ("auto", "auto")
    assert Config(rows=0).rows == 0, "where 0 is a value, it is the value"
    assert dataclasses.replace(Recipe(steps=5), steps=0) == Recipe()


@pytest.mark.parametrize("name", REGISTRY.methods)
def test_no_setting_of_a_method_says_auto_with_a_number(name):
    for each in dataclasses.fields(REGISTRY.method(name).Config):
        said = each.metadata.get("help", "")
        assert not any(word in said for word in ("0:", "0 means", "0 is")), f"{each.name}: {said}"


def test_a_recipe_says_what_it_became():
    assert Recipe(epochs=1, warmup_fraction=0.1, batch_size=4).resolve(50) == {
        "steps": 50, "micro_batch_size": 4, "warmup_steps": 5,
    }  # fmt: skip
    assert Recipe(steps=9, micro_batch_size=2, warmup_steps=0).resolve(9) == {}


def test_no_warm_up_and_a_share_of_it_contradict_each_other():
    with pytest.raises(
        ConfigError, match=r"warmup_steps=0 and warmup_fraction=0.03 say two things; give warmup_steps=auto"
    ):
        Recipe(steps=9, warmup_steps=0, warmup_fraction=0.03)


def test_an_older_record_is_readable_and_shown_in_words(make_record, make_trial):
    config = {
        "r": 8,
        "merge_every": 0,
        "reset_every": 0,
        "warmup": 0,
        "restart_warmup": 0,
        "dropout": 0.0,
        "alpha": 8.0,
    }
    trial = make_trial(method="relora", config=config, layer_settings={}, recipe={"steps": 0, "limit": 0}, format=1)
    assert Trial.from_json(trial.to_json()).id == trial.id
    method, _ = trial.build_methods(REGISTRY.method("relora"))
    assert (method.config.merge_every, method.config.warmup, method.config.dropout) == ("auto", "auto", 0.0)
    lines = [line.split() for line in render_show(make_record(trial)).splitlines()]
    for line in (["merge_every", "auto"], ["warmup", "auto"], ["dropout", "0"], ["steps", "auto"], ["limit", "all"]):
        assert line in lines


def test_a_record_says_what_its_settings_became(make_record, make_trial):
    trial = make_trial(config={"r": 8, "merge_every": "auto"}, recipe={"steps": "auto", "epochs": 2.0})
    record = make_record(trial, resolved={"settings": {"merge_every": 25}, "recipe": {"steps": 100}})
    assert record.settings == {"r": 8, "merge_every": 25}
    assert record.recipe == {"steps": 100, "epochs": 2.0}
    lines = [line.split() for line in render_show(record).splitlines()]
    assert ["merge_every", "25"] in lines
