"""Claims: one owner for a trial, whoever asks at the same moment; a dead one is followed, a living one never robbed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import uuid

import pytest

from harness.results.claims import Claims
from harness.results.owner import is_running, this_machine, this_process
from harness.results.store import Store

TRIALS = [f"{number:016x}" for number in range(5)]
HOLD = """
import sys, time
from harness.results.claims import Claims
from harness.results.store import Store
claims = Claims(Store(sys.argv[1]), settle_seconds=0.05)
print(sorted(claims.take(sys.argv[2:])), flush=True)
time.sleep(600)
"""


@pytest.fixture(params=["folder", "memory"])
def root(request, tmp_path):
    return str(tmp_path) if request.param == "folder" else f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def claims(root):
    """Return a function that makes another owner on the same root."""
    made = []

    def another(**settings):
        made.append(Claims(Store(root), **{"settle_seconds": 0.05, "lifetime_seconds": 0.6, **settings}))
        return made[-1]

    yield another
    for each in made:
        each.close()


def test_a_trial_has_one_owner_and_a_free_one_the_next(claims):
    first, second = claims(), claims()
    assert first.take(TRIALS[:3]) == set(TRIALS[:3])
    assert second.take(TRIALS) == set(TRIALS[3:])
    assert first.take(TRIALS[:1]) == {TRIALS[0]}, "taking what one has changes nothing"
    first.release(TRIALS[0])
    assert second.take(TRIALS[:2]) == {TRIALS[0]}
    first.close()
    assert second.take(TRIALS[:3]) == set(TRIALS[:3])


def test_nothing_is_left_when_everybody_has_closed(claims, root):
    first, second = claims(), claims()
    first.take(TRIALS)
    second.take(TRIALS)
    first.close()
    second.close()
    store = Store(root)
    assert {name for name in store.filesystem.find(store.path) if not name.endswith("/lock")} == set()


def test_many_who_ask_at_once_get_each_trial_once(claims):
    owners = [claims(settle_seconds=0.3) for _ in range(6)]
    got, barrier = [], threading.Barrier(len(owners))

    def ask(owner):
        barrier.wait()
        got.append(owner.take(TRIALS))

    threads = [threading.Thread(target=ask, args=(owner,)) for owner in owners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(trial for each in got for trial in each) == TRIALS


def from_elsewhere(claims, root, owner):
    """Let an owner's claim look like one of a machine whose processes cannot be seen."""
    for trial in owner.held:
        claim = json.dumps({"owner": owner.owner, "machine": "another", "process": "1-1"}).encode()
        Store(root).write_artifact(f"claims/{trial}", claim)


def test_an_owner_elsewhere_whose_beat_goes_on_is_never_robbed(claims, root):
    first, second = claims(), claims()
    first.take(TRIALS[:1])
    from_elsewhere(claims, root, first)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        assert second.take(TRIALS[:1]) == set()
        time.sleep(0.1)


def test_an_owner_elsewhere_that_is_silent_is_followed_by_one(claims, root):
    first, followers = claims(), [claims(), claims(), claims()]
    first.take(TRIALS[:1])
    from_elsewhere(claims, root, first)
    first._closed.set()  # its machine is switched off
    first._heart.join()
    got, end = [], time.monotonic() + 30
    while not got and time.monotonic() < end:
        got = [each for each in followers if each.take(TRIALS[:1])]
        time.sleep(0.05)
    assert len(got) == 1
    assert not [each for each in followers if each not in got and each.take(TRIALS[:1])]
    first.held.clear()


def test_a_silent_process_that_can_be_seen_is_not_robbed(claims):
    first, second = claims(), claims()
    first.take(TRIALS[:1])
    first._closed.set()
    first._heart.join()
    time.sleep(1.0)
    assert second.take(TRIALS[:1]) == set()
    time.sleep(1.0)
    assert second.take(TRIALS[:1]) == set()


def test_a_killed_process_of_this_machine_is_followed_at_once_and_a_stopped_one_is_not(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path), *TRIALS[:2]]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert json.loads(holder.stdout.readline().replace("'", '"')) == TRIALS[:2]
    claims = Claims(Store(str(tmp_path)), lifetime_seconds=0.2)
    holder.send_signal(signal.SIGSTOP)
    time.sleep(0.6)
    assert claims.take(TRIALS[:2]) == set()
    holder.kill()
    holder.wait()
    assert claims.take(TRIALS[:2]) == set(TRIALS[:2])
    claims.close()


def test_a_claim_that_cannot_be_read_expires(claims, root):
    Store(root).write_artifact(f"claims/{TRIALS[0]}", b"[" * 100_000)
    owner, end = claims(lifetime_seconds=0.2), time.monotonic() + 20
    assert owner.take(TRIALS[:1]) == set()
    while not owner.take(TRIALS[:1]) and time.monotonic() < end:
        time.sleep(0.1)
    assert owner.held == {TRIALS[0]}


def test_a_process_is_told_from_a_later_one_of_its_number():
    assert is_running(this_process())
    assert not is_running(f"{os.getpid()}-1")
    for nonsense in ("", "x", None, "1", "-", 3):
        assert not is_running(nonsense)
    gone = multiprocessing.get_context("spawn").Process(target=int)
    gone.start()
    gone.join()
    assert not is_running(f"{gone.pid}-1")
    assert this_machine() == this_machine() != ""


def test_claims_of_the_dead_on_trials_that_nobody_asks_for_are_removed_and_those_of_the_living_are_not(tmp_path):
    store = Store(str(tmp_path))
    dead = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path), *TRIALS[:2]], stdout=subprocess.PIPE, text=True)
    assert dead.stdout.readline()
    alive = Claims(store)
    alive.take(TRIALS[2:3])
    dead.kill()
    dead.wait()
    for owner in ("gone", "living"):  # on another machine
        claim = {"owner": f"elsewhere.1-1.{owner}", "machine": "elsewhere", "process": "1-1"}
        store.write_artifact(f"claims/{TRIALS[3 + (owner == 'living')]}", json.dumps(claim).encode())
        store.write_artifact(f"claims/elsewhere.1-1.{owner}.beat", b"0")
    another = Claims(store, lifetime_seconds=0.6)
    another.take(["f" * 16])
    assert {each for each in TRIALS if (tmp_path / "claims" / each).exists()} == {*TRIALS[2:]}
    time.sleep(0.7)
    store.write_artifact("claims/elsewhere.1-1.living.beat", b"1")
    another.close()
    assert {each for each in TRIALS if (tmp_path / "claims" / each).exists()} == {TRIALS[2], TRIALS[4]}
    alive.close()
