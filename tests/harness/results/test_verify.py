"""What a record is worth: digest, numbers that follow from items, and whether another training agrees."""

from __future__ import annotations

import dataclasses
import math

import pytest

from harness.contract.record import State
from harness.planning.registry import build_registry
from harness.results.store import Store
from harness.results.verify import compare, verify


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def finding(store, record):
    (found,) = verify(store, [record.trial_id])
    return found


def test_a_sound_record_s_numbers_follow_from_its_items(store, make_record):
    store.write(make_record())
    found = finding(store, make_record())
    assert (found.verdict, found.is_bad) == ("sound", False)
    assert found.notes == ("accuracy=0.75: recomputed from 4 items",)


def test_a_number_that_does_not_follow_is_said(store, make_record):
    record = make_record(metrics={"accuracy": 0.5, "mcc": 0.3}, reasons={})
    store.write(record)
    assert finding(store, record).notes == (
        "accuracy=0.5: not the plain mean of its 4 items, which is 0.75",
        "mcc=0.3: without items, it cannot be recomputed",
    )


class Formula:
    """Stands in for a task: two of its metrics follow from the items of others."""

    @classmethod
    def recompute(cls, items):
        mean = sum(items["accuracy"]) / len(items["accuracy"])
        return {"error": 1 - mean, "doubled": 2 * mean}


def test_metrics_without_items_of_their_own_are_recomputed_by_the_task_s_formula(store, make_record):
    record = make_record(metrics={"accuracy": 0.75, "error": 0.25, "mcc": 0.3}, reasons={})
    store.write(record)
    (found,) = verify(store, [record.trial_id], lambda name: Formula)
    assert found.verdict == "sound"
    assert found.notes == (
        "accuracy=0.75: recomputed from 4 items",
        "error=0.25: recomputed by the task's own formula",
        "mcc=0.3: without items, it cannot be recomputed",
    )


def test_a_metric_that_the_task_s_formula_contradicts_is_not_to_be_believed(store, make_record):
    record = make_record(metrics={"accuracy": 0.75, "doubled": 1.6}, reasons={})
    store.write(record)
    (found,) = verify(store, [record.trial_id], lambda name: Formula)
    assert (found.verdict, found.is_bad) == ("inconsistent", True)
    assert "doubled=1.6: the task's own formula makes 1.5 of these items" in found.notes


def test_a_formula_that_fails_on_items_is_said(store, make_record):
    record = make_record(items={"other": [1.0]})
    store.write(record)
    (found,) = verify(store, [record.trial_id], lambda name: Formula)
    assert found.notes[0] == "the task's own formulas fail on these items: KeyError: 'accuracy'"


def test_the_tasks_own_formulas_are_those_they_evaluate_by():
    registry = build_registry()
    losses = [1.0, 2.0, 3.0, None]
    assert registry.task("c4").recompute({"loss": losses}) == {"perplexity": math.exp(2.0)}
    assert registry.task("continual/finance").recompute({"loss": losses}) == {"perplexity": math.exp(2.0)}
    items = {"boolq": [1.0, 0.0], "piqa": [1.0, 1.0, 1.0, 0.0], "average": [0.0] * 6}
    assert registry.task("commonsense").recompute(items) == {"average": 0.625}
    assert registry.task("commonsense").recompute({}) == registry.task("uuid").recompute(items) == {}


def test_an_edited_an_unbound_and_a_broken_record_are_told_apart(store, make_record, make_trial, tmp_path):
    record = make_record()
    path = tmp_path / f"{record.trial_id}.json"
    path.write_text(make_record(schema_version=1).dumps())
    assert finding(store, record).verdict == "unbound"
    path.write_text(record.dumps().replace('"accuracy": 0.75', '"accuracy": 0.99', 1))
    assert finding(store, record).verdict == "edited"
    path.write_text("{")
    assert finding(store, record).verdict == "unreadable"
    path.unlink()
    assert finding(store, record).is_bad
    path.write_text(make_record(make_trial(seed=7)).dumps())
    (note,) = finding(store, record).notes
    assert "it was renamed" in note


@pytest.mark.parametrize("items", [[1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
def test_a_trial_comes_out_the_same_within_chance(make_record, items):
    """The same items right, others right, and one more of four right."""
    new = make_record(metrics={"accuracy": sum(items) / 4}, items={"accuracy": items})
    assert compare(make_record(), new)[0]


def test_a_difference_beyond_chance_is_no_reproduction(make_record):
    many = make_record(metrics={"accuracy": 0.75}, items={"accuracy": [1.0, 1.0, 1.0, 0.0] * 100})
    worse = make_record(metrics={"accuracy": 0.5}, items={"accuracy": [1.0, 0.0, 1.0, 0.0] * 100})
    same, said = compare(many, worse)
    assert not same
    assert "0.75 then, 0.5 now" in said
    assert "400 items" in said


def test_without_items_only_the_same_number_is_the_same(make_record):
    old = make_record(items={})
    assert compare(old, make_record(items={}))[0]
    assert not compare(old, make_record(items={}, metrics={"accuracy": 0.7499}))[0]


def test_states_are_compared_where_there_is_no_score(make_record):
    diverged = make_record(state=State.DIVERGED, metrics={"accuracy": None}, error={"message": "at step 3"})
    assert compare(diverged, dataclasses.replace(diverged))[0]
    same, said = compare(make_record(), diverged)
    assert (same, said) == (False, "complete then, diverged now: at step 3")
