"""Which records leave nothing to do: final ones, and failures that nothing new could change."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from harness.contract.record import State
from harness.errors import UsageError
from harness.planning.retry import CHANCE_TRIES, Retry, parse_states

HERE = {"versions": {"harness": "1"}, "pack": 0}
LONG_AGO = "2026-01-02T03:04:25+00:00"


def failure(make_record, state, conditions=HERE, tries=1, **error):
    error = {"type": "E", "message": "m", "conditions": conditions, **error}
    attempt = {"state": state.value, "error": error, "started_at": LONG_AGO, "finished_at": LONG_AGO}
    return make_record(state=state, error=error, attempts=[attempt] * (tries - 1), finished_at=LONG_AGO)


@pytest.mark.parametrize("state", [State.COMPLETE, State.DIVERGED])
def test_a_method_s_result_is_settled_whatever_is_asked_or_changes(make_record, state):
    assert Retry({"versions": {"harness": "2"}}, tuple(State)).settles(make_record(state=state))


@pytest.mark.parametrize("state", [State.FAILED, State.OUT_OF_MEMORY, State.TIMED_OUT])
def test_a_failure_is_settled_until_something_that_may_matter_changes(make_record, state):
    record = failure(make_record, state)
    assert Retry(HERE).settles(record)
    assert not Retry({**HERE, "versions": {"harness": "2"}}).settles(record)
    assert not Retry({**HERE, "pack": 1}).settles(record)


def test_two_versions_that_share_a_root_do_not_try_for_ever(make_record):
    theirs = {**HERE, "versions": {"harness": "2"}}
    first = failure(make_record, State.FAILED, HERE)
    second = make_record(
        state=State.FAILED, error={"type": "E", "conditions": theirs}, attempts=[first.attempt], finished_at=LONG_AGO
    )
    assert Retry(HERE).settles(second)
    assert Retry(theirs).settles(second)


@pytest.mark.parametrize(("state", "error"), [(State.LOST, {}), (State.FAILED, {"transient": True})])
def test_where_chance_has_a_part_a_trial_is_tried_a_few_times(make_record, state, error):
    for tries in range(1, CHANCE_TRIES):
        assert not Retry(HERE).settles(failure(make_record, state, tries=tries, **error))
    assert Retry(HERE).settles(failure(make_record, state, tries=CHANCE_TRIES, **error))


def test_an_interrupted_trial_is_never_settled_and_counts_as_no_try(make_record):
    assert not Retry(HERE).settles(failure(make_record, State.INTERRUPTED, tries=99))
    stopped = failure(make_record, State.INTERRUPTED)
    record = failure(make_record, State.LOST)
    attempts = [stopped.attempt] * CHANCE_TRIES
    assert not Retry(HERE).settles(make_record(state=State.LOST, error=record.error, attempts=attempts))


def test_what_is_asked_for_is_tried_once_more(make_record):
    retry = Retry(HERE, (State.FAILED,))
    assert not retry.settles(failure(make_record, State.FAILED))
    assert retry.settles(failure(make_record, State.OUT_OF_MEMORY))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    again = make_record(state=State.FAILED, error={"conditions": HERE}, finished_at=now)
    assert retry.settles(again), "it has been tried again by this command"


def test_an_edited_record_is_replaced_only_if_asked(make_record):
    edited = make_record(finished_at=LONG_AGO).without_numbers()
    assert Retry({"pack": 9}).settles(edited)
    assert not Retry(asked=(State.EDITED,)).settles(edited)


def test_records_of_schema_1_say_no_conditions_and_are_tried_again(make_record):
    assert not Retry(HERE).settles(make_record(state=State.FAILED, error={"type": "E"}, schema_version=1))


def test_states_are_read_and_mistakes_are_named():
    assert parse_states("failed, lost") == (State.FAILED, State.LOST)
    assert State.COMPLETE not in parse_states("all")
    assert set(parse_states("all")) == {state for state in State if not state.is_final}
    with pytest.raises(UsageError, match=r"--retry 'diverged' is the method's result.*failed"):
        parse_states("diverged")
    with pytest.raises(UsageError, match=r"--retry 'broken' is no state.*out_of_memory"):
        parse_states("lost,broken")
