"""A trial's identity and a record's JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.contract.record import Record, State, loads
from harness.contract.trial import Trial
from harness.errors import RecordError

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


@given(config=SETTINGS)
def test_id_can_be_computed_from_the_json_alone(make_trial, config):
    trial = make_trial(config=config)
    canonical = json.dumps(trial.to_json(), sort_keys=True, separators=(",", ":"))
    assert trial.id == hashlib.sha256(canonical.encode()).hexdigest()[:16]


def test_the_id_of_a_content_is_the_same_in_every_version(make_trial):
    """Records of earlier versions are found again, and nothing is trained twice."""
    assert make_trial(format=1).id == "771a5f3056b1f1b6"
    assert make_trial(format=2).id == "0124ef5041818810"


def test_the_content_is_encoded_once_per_trial(make_trial, monkeypatch):
    hashed = []

    def counted(content, sha256=hashlib.sha256):
        hashed.append(content)
        return sha256(content)

    monkeypatch.setattr(hashlib, "sha256", counted)
    trial = make_trial()
    assert trial.id == trial.id == trial.id
    assert len(hashed) == 1
    other = dataclasses.replace(trial, seed=trial.seed + 1)
    assert other.id != trial.id, "a copy with a change does not keep the id"
    assert other == make_trial(seed=trial.seed + 1), "nor does an id that was asked for tell trials apart"


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


def test_only_what_says_something_about_the_method_is_final():
    assert [state.value for state in State if state.is_final] == ["complete", "diverged"]


def _numbers(value, path=()):
    if isinstance(value, dict):
        return [each for key in value for each in _numbers(value[key], (*path, key))]
    if isinstance(value, list):
        return [each for place, inner in enumerate(value) for each in _numbers(inner, (*path, place))]
    return [path] if isinstance(value, int | float) and not isinstance(value, bool) else []


def test_a_record_that_was_changed_anywhere_is_read_as_edited_and_without_numbers(make_record):
    data = json.loads(make_record().dumps())
    places = [each for each in _numbers(data) if each[0] not in ("trial", "schema_version")]
    assert len(places) > 10
    for place in places:
        forged = json.loads(make_record().dumps())
        inner = forged
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] += 1
        record = Record.from_json(forged)
        assert (record.state, record.score, record.items, record.history) == (State.EDITED, None, {}, []), place
        assert all("changed after it was written" in reason for reason in record.reasons.values())


def test_a_digest_that_is_missing_or_another_binds_nothing(make_record):
    data = make_record().to_json()
    assert Record.from_json({**data, "digest": "sha256:0"}).state is State.EDITED
    del data["digest"]
    assert Record.from_json(data).state is State.EDITED


def test_a_record_of_schema_1_is_read_and_written_as_it_was_and_is_not_bound(make_record):
    old = make_record(schema_version=1)
    text = old.dumps()
    assert "digest" not in text
    assert "attempts" not in text
    read = Record.from_json(loads(text))
    assert (read.is_bound, read.dumps(), read.score) == (False, text, 0.75)
    assert make_record().is_bound


def test_nothing_nested_too_deeply_is_read():
    with pytest.raises(ValueError, match="nested too deeply"):
        loads("[" * 200_000)


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
    with pytest.raises(RecordError, match=r"schema_version=99.*reads 1 and 2"):
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


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("metrics", "x", "metrics='x' is not allowed; give an object"),
        ("metrics", {"accuracy": float("inf")}, "metrics.accuracy=inf is not allowed; give a finite number or null"),
        ("reasons", {"accuracy": 3}, "reasons.accuracy=3 is not allowed; give text"),
        ("history", {}, "history={} is not allowed; give a list"),
        ("history", [{"metrics": 3}], "history[0]={'metrics': 3} is not allowed; give an object with step and metrics"),
        ("history", [{"step": 1, "metrics": 3}], "history[0].metrics=3 is not allowed"),
        ("history", [{"step": "1", "metrics": {}}], "history[0].step='1' is not allowed; give a whole number"),
        ("history", [{"step": 1, "metrics": {"loss": "low"}}], "history[0].metrics.loss='low' is not allowed"),
        ("items", {"m": "abc"}, "items.m='abc' is not allowed; give a list"),
        ("items", {"m": [1.0, "abc"]}, "items.m[1]='abc' is not allowed"),
        ("main_metric", None, "main_metric=None is not allowed; give text"),
        ("higher_is_better", "yes", "higher_is_better='yes' is not allowed; give true or false"),
        ("metric_details", {"accuracy": "A"}, "metric_details.accuracy='A' is not allowed; give an object"),
        ("counts", {"adapter_parameters": "many"}, "counts.adapter_parameters='many' is not allowed"),
        ("cost", {"train_seconds": "abc"}, "cost.train_seconds='abc' is not allowed"),
        ("cost", {"train_seconds": float("nan")}, "cost.train_seconds=nan is not allowed"),
        ("environment", None, "environment=None is not allowed"),
        ("error", "out of memory", "error='out of memory' is not allowed; give an object or null"),
        ("started_at", "yesterday", "started_at='yesterday' is not allowed; give a time in ISO 8601"),
        ("finished_at", None, "finished_at=None is not allowed"),
        ("artifacts", {"adapter": None}, "artifacts.adapter=None is not allowed"),
        ("published", ["MELoRA"], "published[0]='MELoRA' is not allowed"),
        ("paper_recipe", [], "paper_recipe=[] is not allowed"),
    ],
)
def test_a_value_of_a_wrong_type_is_refused_with_its_place(make_record, name, value, said):
    with pytest.raises(RecordError, match=re.escape(said)):
        Record.from_json({**make_record().to_json(), name: value})


@pytest.mark.parametrize("data", [[], "text", 3, None])
def test_what_is_no_object_is_no_record(data):
    with pytest.raises(RecordError, match=re.escape(f"it holds {data!r}, not a record")):
        Record.from_json(data)


def test_a_trial_with_an_infinite_number_is_refused(make_record):
    data = make_record().to_json()
    data["trial"]["learning_rate"] = float("inf")  # as 1e999 reads
    with pytest.raises(RecordError, match="not readable"):
        Record.from_json(data)


def test_what_trials_write_is_allowed(make_record):
    record = make_record(
        items={"correct": [True, False, None]},
        cost={"compiled": True, "train_seconds": None, "train_tokens": 10**30},
        metrics={},
        error={"type": "E", "step": 3},
        started_at="",
    )
    assert Record.from_json(loads(record.dumps())) == record


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_text_with_a_constant_that_json_lacks_is_refused(constant):
    with pytest.raises(ValueError, match=f"{constant} is not a number"):
        loads(f'{{"a": [{constant}]}}')
