"""``harness leaderboard``, ``serve`` and ``diff``, as a user runs them."""

import http.client
import json
import os
import re
import threading
import time

import pytest
from click.testing import CliRunner

from harness.contract.record import State
from harness.errors import UsageError
from harness_leaderboard import live as serving
from harness_leaderboard.command import leaderboard, view_of
from harness_leaderboard.live import Site, server
from harness_leaderboard.load import load
from harness_leaderboard.write.html import write_site
from harness_plugins.trackers import live


def write(folder, records):
    folder.mkdir(exist_ok=True)
    for record in records:
        (folder / f"{record.trial_id}.json").write_text(record.dumps())
    return str(folder)


def run(*words, **more):
    return CliRunner().invoke(leaderboard, list(words), catch_exceptions=False, **more)


def test_several_roots_make_one_site_and_a_foreign_file_is_named(tmp_path, make_record, caplog):
    first = write(tmp_path / "a", [make_record("lora", seed) for seed in (0, 1)])
    second = write(tmp_path / "b", [make_record("mora", seed) for seed in (0, 1)])
    (tmp_path / "b" / "package.json").write_text("{}")
    done = run("--results", first, "--results", second, "-o", str(tmp_path / "site"))
    assert done.exit_code == 0
    assert re.search(r"passed over: .*package\.json", caplog.text)
    page = (tmp_path / "site" / "index.html").read_text()
    assert "lora, mora" in page
    assert "package.json: not a record" in page


@pytest.mark.parametrize("words", [["-o", "site"], ["--json"], ["diff", "empty", "empty"]])
def test_a_folder_without_a_record_makes_no_page(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no record in 'empty'.* looked for"):
        run(*words) if "diff" in words else run("empty", *words)
    assert [each.name for each in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize("option", ["-o", "--json"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, make_record, option):
    root = write(tmp_path / "results", [make_record()])
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write .*file"):
        run(root, option, str(tmp_path / "file" / "x"))


def test_a_root_may_stand_first_without_its_option(tmp_path, make_record):
    roots = [write(tmp_path / name, [make_record("lora", seed)]) for seed, name in enumerate(("a", "b"))]
    done = run(*roots, "-o", str(tmp_path / "site"))
    assert (done.exit_code, "2 records" in done.output) == (0, True)


def test_the_environments_root_may_hold_spaces_and_colons(tmp_path, make_record):
    root = write(tmp_path / "my results:x", [make_record()])
    done = run("-o", str(tmp_path / "site"), env={"HARNESS_RESULTS": root})
    assert (done.exit_code, "1 records" in done.output) == (0, True)


def trials_of(site):
    shards = [path.read_text() for path in (site / "data" / "trials").iterdir()]
    found = [json.loads(text.partition("(")[2].rpartition(")")[0])["trials"] for text in shards]
    return {trial_id: trial for trials in found for trial_id, trial in trials.items()}


def test_a_trials_page_links_to_its_record_and_to_its_adapter_if_that_is_there(tmp_path, make_record):
    records = [make_record(seed=seed, artifacts={"adapter": f"adapters/{seed}.safetensors"}) for seed in range(2)]
    root = write(tmp_path / "results", records)
    (tmp_path / "results" / "adapters").mkdir()
    (tmp_path / "results" / "adapters" / "0.safetensors").touch()
    site = tmp_path / "deep" / "site"
    run("--results", root, "-o", str(site))
    first, second = (trials_of(site)[record.trial_id] for record in records)
    assert (site / first["folder"] / first["record"]).exists()
    assert (first["artifacts"], second["artifacts"]) == ({"adapter": "adapters/0.safetensors"}, {})


def test_diff_says_what_came_what_went_and_what_changed(tmp_path, make_record):
    same = [make_record("lora", seed, 0.5) for seed in (0, 1)]
    old = write(tmp_path / "old", [*same, make_record("mora", 0, 0.4), make_record("dora", 0, 0.6)])
    new = write(tmp_path / "new", [*same, make_record("mora", 0, 0.45), make_record("vera", 0, 0.7)])
    lines = run("diff", old, new).output.splitlines()
    found = {line.split()[8]: line for line in lines if line.startswith("uuid")}
    assert set(found) == {"mora", "dora", "vera"}
    assert "another result of the same trial" in found["mora"]
    assert "+0.05" in found["mora"]
    assert "gone" in found["dora"]
    assert "new" in found["vera"]
    assert "nothing" in run("diff", old, old).output


@pytest.fixture
def served(tmp_path, make_record):
    """A site that is served, its result root, and a function that asks it."""
    root = write(tmp_path / "results", [make_record("lora", 0)])
    folder = tmp_path / "site"

    def build():
        view = view_of(load([root]), None)
        write_site(view, folder, live=True)
        return view.record_count, [text for board in view.boards for text in board.failures]

    site = Site([root], folder, build)
    assert site.renew()
    listening = server(site, 0)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()

    def ask(path, host=None):
        connection = http.client.HTTPConnection("127.0.0.1", listening.server_port, timeout=20)
        connection.request("GET", path, headers={"Host": host or f"localhost:{listening.server_port}"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    yield site, tmp_path / "results", ask
    listening.shutdown()
    listening.server_close()
    thread.join()


def test_what_is_served_is_renewed_as_records_come(served, make_record):
    site, root, ask = served
    assert not site.renew()
    assert ask("/index.html")[0] == 200
    write(root, [make_record("mora", 0, state=State.FAILED)])
    assert site.renew()
    news = json.loads(ask("/live.json")[1])
    assert (news["version"], news["records"], news["failure_count"]) == (2, 2, 1)
    assert "mora" in news["failures"][0]


def test_a_folder_of_roots_is_renewed_too_and_so_is_a_record_that_takes_anothers_place(tmp_path, make_record):
    (tmp_path / "runs").mkdir()
    site = Site([str(tmp_path / "runs")], tmp_path, lambda: (0, []))
    assert (site.renew(), site.renew()) == (True, False)
    root = write(tmp_path / "runs" / "a", [make_record("lora", 0, state=State.FAILED)])
    assert (site.renew(), site.renew()) == (True, False)
    write(tmp_path / "runs" / "a", [make_record("lora", 0, 0.75)])
    assert site.renew(), root


def test_a_root_that_is_away_for_a_moment_ends_no_renewing(tmp_path, make_record, monkeypatch):
    monkeypatch.setattr(serving, "EVERY_SECONDS", 0.01)
    (tmp_path / "runs").mkdir()
    site = Site([str(tmp_path / "runs")], tmp_path, lambda: (0, []))
    assert site.renew()
    (tmp_path / "runs").rename(tmp_path / "away")
    warned = threading.Event()
    monkeypatch.setattr(serving.log, "warning", lambda *_: warned.set())
    stop = threading.Event()
    thread = serving.renewing(site, stop)
    assert warned.wait(20)
    (tmp_path / "away").rename(tmp_path / "runs")
    write(tmp_path / "runs", [make_record()])
    for _ in range(2000):
        if site.news()["version"] == 2:
            break
        time.sleep(0.01)
    stop.set()
    thread.join()
    assert site.news()["version"] == 2


def test_a_name_of_somebody_elses_gets_nothing_and_no_folder_is_listed(served):
    _, _, ask = served
    assert ask("/index.html", host="evil.example:80")[0] == 403
    assert ask("/live.json", host="evil.example")[0] == 403
    assert ask("/boards/")[0] == 404
    assert ask("/../../etc/passwd")[0] == 404


def test_what_trains_right_now_is_shown_and_gone_when_the_sweep_ends(served, make_record):
    _, root, ask = served
    trial = make_record("dora", 3).trial
    live.harness_trial_started(trial, {"results_root": str(root)})
    live._roots[str(root)] = 0.0  # a second has gone by
    live.harness_trial_progress(trial, 20, {"train/loss": float("nan")})
    (running,) = json.loads(ask("/live.json")[1])["running"]
    assert (running["label"], running["step"], running["steps"]) == (trial.label, 20, 500)
    assert running["points"] == {"train/loss": [[20, None]]}
    live.harness_sweep_finished()
    assert json.loads(ask("/live.json")[1])["running"] == []
    assert list((root / "live").iterdir()) == []


def test_a_trial_whose_updates_take_minutes_is_shown_as_long_as_its_command_lives(served, make_record):
    _, root, ask = served
    live.harness_trial_started(make_record("dora", 3).trial, {"results_root": str(root)})
    (file,) = (root / "live").iterdir()
    file.write_text(json.dumps({**json.loads(file.read_text()), "at": time.time() - 3_000}))
    assert len(json.loads(ask("/live.json")[1])["running"]) == 1
    file.rename(file.with_name(f"elsewhere-{os.getpid()}.json"))
    assert json.loads(ask("/live.json")[1])["running"] == [], "nobody knows whether that command lives"
    live.harness_sweep_finished()


def test_a_trial_whose_epochs_decide_how_long_it_trains_is_shown_too(served, make_record):
    _, root, ask = served
    trial = make_record("dora", 3, trial={"recipe": {"steps": "auto", "epochs": 1.0}}).trial
    live.harness_trial_started(trial, {"results_root": str(root)})
    (running,) = json.loads(ask("/live.json")[1])["running"]
    assert (running["label"], running["steps"]) == (trial.label, 0)
    live.harness_sweep_finished()


def test_what_the_pages_show_is_there_as_json_alone_or_in_a_file(tmp_path, make_graded):
    root = write(tmp_path / "results", [*make_graded("lora", 0.9, range(3)), *make_graded("mora", 0.2, range(3))])
    done = CliRunner().invoke(leaderboard, ["--results", root, "-o", str(tmp_path / "site"), "--json"])
    (board,) = json.loads(done.stdout)["boards"]
    assert [(each["method"], each["rank_best"], each["rank_worst"]) for each in board["values"]] == [
        ("lora", "1", "1"),
        ("mora", "2", "2"),
    ]
    assert board["pairs"]["pairs"][0]["separated"] is True
    assert [each["key"] for each in board["scores"]["columns"]]
    assert not (tmp_path / "site").exists()
    run("--results", root, "--json", str(tmp_path / "board.json"))
    assert (tmp_path / "board.json").read_text() == done.stdout
