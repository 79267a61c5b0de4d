"""A trial's identity and a record's JSON."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import RecordError
from harness.record import Record, State
from harness.trial import Trial

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
SETTINGS = st.dictionaries(
    st.text(),
    st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8),
)


def reversed_keys(value):
    if isinstance(value, dict):
        return {key: reversed_keys(each) for key, each in reversed(value.items())}
    return [reversed_keys(each) for each in value] if isinstance(value, list | tuple) else value


@given(recipe=SETTINGS, config=SETTINGS, rate=st.floats(1e-6, 1), seed=st.integers(0, 2**31))
def test_id_survives_json_and_the_order_of_keys(make_trial, recipe, config, rate, seed):
    trial = make_trial(recipe=recipe, config=config, learning_rate=rate, seed=seed)
    again = Trial.from_json(json.loads(json.dumps(trial.to_json())))
    assert again.id == trial.id
    assert again.to_json() == trial.to_json()
    assert Trial.from_json(reversed_keys(trial.to_json())).id == trial.id


@given(first=SETTINGS, second=SETTINGS)
def test_id_tells_different_settings_apart(make_trial, first, second):
    same = json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    assert (make_trial(config=first).id == make_trial(config=second).id) == same


def test_id_is_sixteen_hexadecimal_digits_of_the_content(make_trial):
    assert re.fullmatch("[0-9a-f]{16}", make_trial().id)
    assert make_trial().id == make_trial().id


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"learning_rate": 2e-3},
        {"method": "dora"},
        {"model_revision": "abc124"},
        {"purpose": "tune"},
        {"targets": ("v", "q")},
        {"layer_settings": {}},
        {"plugins": {"method": "peft-harness==0.1.1"}},
    ],
)
def test_everything_that_decides_the_result_changes_the_id(make_trial, change):
    assert make_trial(**change).id != make_trial().id


def test_a_trial_with_nan_has_no_id(make_trial):
    with pytest.raises(ValueError, match="not JSON compliant"):
        _ = make_trial(config={"alpha": float("nan")}).id


def test_trial_is_frozen_and_named_for_people(make_trial):
    with pytest.raises(AttributeError):
        make_trial().seed = 5
    assert make_trial(task="glue/rte", learning_rate=3e-4, seed=2).label == "glue/rte/lora/lr0.0003/s2"


def test_trial_with_an_unknown_key_is_refused(make_trial):
    with pytest.raises(TypeError, match="colour"):
        Trial.from_json({**make_trial().to_json(), "colour": "blue"})


@pytest.mark.parametrize("state", list(State))
def test_record_round_trip_in_every_state(make_record, state):
    error = None if state is State.COMPLETE else {"type": "E", "message": "m", "traceback": "t", "step": 3}
    record = make_record(state=state, error=error)
    assert Record.from_json(json.loads(record.dumps())) == record


@given(
    metrics=st.dictionaries(st.text(), st.none() | st.floats(allow_nan=False, allow_infinity=False)),
    environment=SETTINGS,
)
def test_text_of_a_record_is_the_same_after_a_round_trip(make_record, metrics, environment):
    record = make_record(metrics=metrics, environment=environment)
    assert Record.from_json(json.loads(record.dumps())).dumps() == record.dumps()


def test_only_an_interrupted_trial_is_run_again():
    assert [state.value for state in State if not state.is_final] == ["interrupted"]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_nan_and_infinity_are_not_written(make_record, number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        make_record(metrics={"accuracy": number}).dumps()


def test_score_is_the_main_metric(make_record):
    assert make_record().score == 0.75
    assert make_record(main_metric="perplexity").score is None


def test_a_record_whose_trial_was_edited_is_refused(make_record):
    data = make_record().to_json()
    data["trial"] = {**data["trial"], "learning_rate": 1.0}
    with pytest.raises(RecordError, match=f"{make_record().trial_id}.*was edited"):
        Record.from_json(data)


def test_a_record_of_another_schema_is_refused(make_record):
    with pytest.raises(RecordError, match=r"schema_version=99.*reads 1"):
        Record.from_json({**make_record().to_json(), "schema_version": 99})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data.pop("started_at"),
        lambda data: data.pop("trial"),
        lambda data: data.update(state="exploded"),
        lambda data: data.update(colour="blue"),
        lambda data: data["trial"].pop("seed"),
        lambda data: data.pop("trial_id"),
    ],
)
def test_missing_unknown_and_wrong_keys_are_refused(make_record, spoil):
    data = make_record().to_json()
    spoil(data)
    with pytest.raises(RecordError):
        Record.from_json(data)
