import csv
import io
import random
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from harness.contract.record import State
from harness_leaderboard.build import build
from harness_leaderboard.table import bytes_text, seconds_text, terminal_table

HOSTILE = "<script>alert(1)</script>\"'&|$x^2$ {{ 7*7 }} \\input{x}_%#~"
FILES = ("index.html", "leaderboard.md", "leaderboard.csv", "leaderboard.tex")


def texts(records, folder):
    build(records, folder)
    return {name: (folder / name).read_text(encoding="utf-8") for name in FILES}


@pytest.fixture(scope="module")
def site(example_records, tmp_path_factory):
    return texts(example_records, tmp_path_factory.mktemp("site"))


class Elements(HTMLParser):
    """Collects tags, and the text outside of style and script."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self._hidden = [], "", False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._hidden = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._hidden = False
        self.text += " " * (tag in ("td", "th"))

    def handle_data(self, data):
        if not self._hidden:
            self.text += data


def test_build_returns_the_page_and_makes_the_folder(example_records, tmp_path):
    page = build(example_records, tmp_path / "deep" / "site")
    assert page == tmp_path / "deep" / "site" / "index.html"
    assert sorted(each.name for each in page.parent.iterdir()) == sorted(FILES)


def test_same_records_same_bytes_in_any_order(example_records, site, tmp_path):
    shuffled = list(example_records)
    random.Random(1).shuffle(shuffled)
    assert texts(shuffled, tmp_path) == site


def test_same_bytes_in_another_process_with_another_hash_seed(site, tmp_path, example_records):
    for record in example_records:
        (tmp_path / f"{record.trial_id}.json").write_text(record.dumps())
    code = (
        "import sys, pathlib; from harness_leaderboard.load import load_records; "
        "from harness_leaderboard.build import build; "
        "build(load_records(sys.argv[1]), pathlib.Path(sys.argv[2]))"
    )
    environment = {
        "PYTHONHASHSEED": "12345",
        "PYTHONPATH": ":".join(sys.path),
        "TZ": "Asia/Tokyo",
        "HOME": str(tmp_path),
    }
    subprocess.run([sys.executable, "-c", code, str(tmp_path), str(tmp_path / "out")], env=environment, check=True)
    assert {name: (tmp_path / "out" / name).read_text(encoding="utf-8") for name in FILES} == site


def test_the_leaderboard_imports_no_torch():
    code = (
        "import sys, harness_leaderboard.build, harness_leaderboard.load, harness_leaderboard.table; "
        "print([name for name in ('torch', 'transformers', 'mlflow', 'scipy', 'sklearn') if name in sys.modules])"
    )
    environment = {"PYTHONPATH": ":".join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


def test_the_page_names_nothing_outside_itself(site):
    for tag, attributes in Elements(site["index.html"]).tags:
        for name in ("src", "href", "xlink:href", "action", "srcset", "poster"):
            if name in attributes and tag != "script":
                assert attributes[name].startswith(("#", "data:")), (tag, attributes)
    style = site["index.html"].split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_every_id_on_the_page_is_unique_and_every_reference_exists(site):
    tags = Elements(site["index.html"]).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = {
        value[1:]
        for _, attributes in tags
        for name, value in attributes.items()
        if name.endswith("href") and value[:1] == "#"
    }
    wanted |= {each for _, attributes in tags for each in (attributes.get("aria-labelledby") or "").split()}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", site["index.html"]))
    assert wanted <= set(ids)


def test_the_first_lines_say_what_is_compared(site):
    text = " ".join(Elements(site["index.html"]).text.split())
    for part in (
        "8 methods at the same budget, lora:r=8 (98,304 trained adapter parameters), reached within 0.60 %.",
        "Score: mean Accuracy over 5 seeds (0, 1, 2, 3, 4); higher is better.",
        "Rows with the same rank cannot be told apart",
        "Methods with the same rank are tied",
        "corrected for 15 pairs",
        "for this board to tell them apart (80 % power)",
    ):
        assert part in text


def test_the_page_shows_failures_ties_references_reasons_and_effort(site):
    text = " ".join(Elements(site["index.html"]).text.split())
    for part in (
        "7 trials did not finish",
        "TrialDivergedError: loss became NaN",
        "out of memory",
        "Reference, outside the budget",
        "not ranked: 2 of 5 seeds did not finish",
        "1 seed: no interval",
        "per-layer settings",
        "3 tried",
        "Tuning effort is not equal",
        "Learning-rate search",
        "Metrics by step",
        "step 250",
        "66 records",
        "hardware.device Test CPU",
        "generated-v1",
        "0123abc",
    ):
        assert part in text, part
    assert "no probe: --no-probe was given" in site["index.html"]


def test_tables_have_captions_scopes_and_sort_states(site):
    tags = Elements(site["index.html"]).tags
    names = [tag for tag, _ in tags]
    assert names.count("table") == names.count("caption")
    assert all(
        "scope" in attributes for tag, attributes in tags if tag == "th" and attributes.get("class") != "plot head"
    )
    assert any(attributes.get("aria-sort") == "descending" for _, attributes in tags)
    charts = [attributes for tag, attributes in tags if tag == "svg" and attributes.get("class") == "chart"]
    assert len(charts) == 3
    assert all(each["role"] == "img" for each in charts)


def test_hostile_names_are_text_everywhere(make_record, tmp_path):
    details = {"accuracy": {"title": HOSTILE, "unit": HOSTILE, "higher_is_better": True, "help": HOSTILE}}
    trial = {
        "task": HOSTILE,
        "scale": HOSTILE,
        "model": HOSTILE,
        "budget": HOSTILE,
        "config": {HOSTILE: HOSTILE},
        "data": HOSTILE,
    }
    trial["layer_settings"] = {HOSTILE: {HOSTILE: HOSTILE}}
    error = {"type": HOSTILE, "message": HOSTILE, "traceback": HOSTILE, "step": 3}
    shared = {"metric_details": details, "environment": {HOSTILE: HOSTILE}, "trial": trial}
    records = [make_record(HOSTILE, seed, 0.5 + seed / 10, **shared) for seed in (0, 1)]
    records.append(make_record(HOSTILE, 2, state=State.FAILED, **{**shared, "error": error}))
    found = texts(records, tmp_path)
    page = Elements(found["index.html"])
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert HOSTILE in page.text
    assert "49 \\input" not in page.text  # nothing in a record is a template
    assert "<script" not in found["leaderboard.md"]
    table_lines = [line for line in found["leaderboard.md"].splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table_lines}) == 1  # no name opens a column
    body = found["leaderboard.tex"].split("\n", 1)[1]
    assert "\\input{x}" not in body
    assert not re.search(r"(?<!\\)[%#]", body)
    (line,) = csv.DictReader(io.StringIO(found["leaderboard.csv"]))
    assert line["method"] == HOSTILE


def test_a_record_cannot_steer_the_terminal(make_record):
    assert "\x1b" not in terminal_table(
        [make_record("evil\x1b[2J"), make_record("x", state=State.FAILED, error={"message": "\x1b]0;"})]
    )


def test_csv_holds_unrounded_numbers_and_empty_gaps(make_record, make_reference, tmp_path):
    records = [make_record("lora", seed, 1 / 3 + seed / 100) for seed in (0, 1)]
    records += [make_record("mora", 0, state=State.DIVERGED), make_reference(0, 0.9)]
    lines = {line["method"]: line for line in csv.DictReader(io.StringIO(texts(records, tmp_path)["leaderboard.csv"]))}
    assert float(lines["lora"]["score"]) == pytest.approx(1 / 3 + 0.005, abs=1e-15)
    assert lines["lora"]["adapter_parameters"] == "98304"
    assert lines["lora"]["budget_parameters"] == "98304"
    assert lines["mora"]["score"] == ""
    assert lines["mora"]["trials_diverged"] == "1"
    assert (lines["full"]["is_reference"], lines["full"]["budget_parameters"]) == ("True", "")


def test_markdown_has_a_table_reasons_and_failures(site):
    text = site["leaderboard.md"]
    assert "## uuid · smoke · nano · budget lora:r=8" in text
    assert re.search(r"\|\s+1=\s+\| dora", text)
    assert "Rank: not ranked: 2 of 5 seeds did not finish (vera)" in text
    assert "Step, solo: no probe: --no-probe was given (lora)" in text
    assert "vera, report, lr 0.001, seed 3: diverged at step 200: TrialDivergedError: loss became NaN" in text


def test_latex_has_a_booktabs_table_per_board(site):
    text = site["leaderboard.tex"]
    assert text.count("\\begin{table}") == text.count("\\end{table}") == text.count("\\toprule") == 2
    assert "out of memory at step 200" in text
    assert "—" not in text
    for line in text.splitlines():
        if line.endswith("\\\\"):
            assert len(re.findall(r"(?<!\\)&", line)) == 10


def test_terminal_table_shows_ranks_failures_and_notes(example_records):
    text = terminal_table(example_records)
    assert re.search(r"^ +1=  dora", text, flags=re.MULTILINE)
    assert "7 trials did not finish:" in text
    assert "vera: not ranked: 2 of 5 seeds did not finish" in text
    assert "! Tuning effort is not equal" in text
    assert "ref.  full" in text


def test_mixed_hardware_is_on_the_page_and_in_markdown(make_record, tmp_path):
    other = {"hardware": {"device": "Other GPU"}}
    found = texts([make_record("a"), make_record("b", environment=other)], tmp_path)
    assert "Mixed environment, hardware.device: Other GPU (b); Test CPU (a)" in Elements(found["index.html"]).text
    assert "Mixed environment" in found["leaderboard.md"]


def test_no_records_make_an_honest_empty_page(tmp_path):
    found = texts([], tmp_path)
    assert "There are no records to show." in found["index.html"]
    assert terminal_table([]) == "No records."


def test_a_board_where_everything_failed_is_a_page(make_record, tmp_path):
    found = texts([make_record("a", seed, state=State.FAILED, history=()) for seed in (0, 1)], tmp_path)
    assert "2 trials did not finish" in Elements(found["index.html"]).text


def test_references_alone_make_a_board_without_ranks(make_reference, tmp_path):
    text = Elements(texts([make_reference(0), make_reference(1)], tmp_path)["index.html"]).text
    assert "Only reference methods" in text
    assert "full" in text


def test_a_score_that_never_varies_is_drawn(make_record, tmp_path):
    records = [make_record(name, seed, 0.0, history=()) for name in "ab" for seed in (0, 1)]
    found = texts(records, tmp_path)
    assert "1=" in found["index.html"]
    assert "2 seeds, all equal" in found["index.html"]  # not an interval without width, which would look like certainty
    assert "2 seeds, all equal" in found["leaderboard.md"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.314, "8.31 s"), (59.96, "60 s"), (250, "4 min 10 s"), (3599.7, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_durations(seconds, text):
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(512, "512 B"), (1010 * 1024, "1010 KiB"), (432013312, "412 MiB"), (1.5 * 2**30, "1.5 GiB")]
)
def test_sizes(count, text):
    assert bytes_text(count) == text


QUOTED = {
    "method": "lora",
    "budget": "lora:r=8",
    "metric": "accuracy",
    "value": 0.542,
    "source": "MoRA table 2",
    "confidence": "read from the published table",
}


def test_a_published_number_is_beside_ours_with_its_source_and_why_it_is_not_comparable(make_record, tmp_path):
    entries = [{**QUOTED, "step": 900}, {**QUOTED, "step": 250, "value": 0.101}, {**QUOTED, "method": "vera"}]
    records = [make_record("lora", seed, 0.5, published=entries) for seed in (0, 1)]
    records += [make_record("mora", seed, 0.4) for seed in (0, 1)]
    found = texts(records, tmp_path)
    text = " ".join(Elements(found["index.html"]).text.split())
    assert "published 0.542 at step 900" in text
    assert "MoRA table 2; read from the published table" in text
    # The curve of these records is at 0.5 * 250 / 500 at step 250; at step 900 there is nothing of ours.
    line = (
        "0.101 at step 250, 0.542 at step 900 model not recorded, budget lora:r=8, paper scale "
        "0.25 at step 250, 0.5 at the end nano, 98,304 parameters, smoke scale no: ours is the smoke scale"
    )
    assert line in text
    note = (
        "The published numbers and ours are not comparable: ours is the smoke scale, not the paper's; "
        "ours is of nano; which model the paper's is of, the record does not say; "
        "in what our recipe differs from the paper's, the record does not say."
    )
    assert note in text
    assert not re.search(r"\bvera\b", text)  # a method that did not run
    assert "Published" in found["leaderboard.md"]
    lines = {line["method"]: line for line in csv.DictReader(io.StringIO(found["leaderboard.csv"]))}
    assert (lines["lora"]["published"], lines["lora"]["published_step"]) == ("0.542", "900")
    assert lines["mora"]["published"] == ""
    assert "0.542 at step 900" in terminal_table(records)


RECIPE = {"steps": 500, "batch_size": 16}  # of the records


def test_a_published_number_of_our_model_scale_and_recipe_has_no_reservation(make_record, tmp_path):
    quoted = [{**QUOTED, "model": "nano"}, {**QUOTED, "budget": "lora:r=256", "value": 0.9}]
    record = make_record("lora", published=quoted, paper_recipe=RECIPE, trial={"scale": "paper"})
    text = Elements(texts([record], tmp_path)["index.html"]).text
    assert "published 0.542" in text
    assert "nothing known against it" in text
    assert "not comparable" not in text
    assert "0 of 2 fields are not the paper scale's" in text
    assert "0.9" not in text  # of another budget


def test_the_papers_model_and_scale_stand_beside_each_published_number(make_record, tmp_path):
    quoted = [{**QUOTED, "method": "lora:alpha=16", "model": "meta-llama/Llama-2-7b-hf"}]
    records = [make_record("lora", seed, 0.5, published=quoted, paper_recipe=RECIPE) for seed in (0, 1)]
    records.append(
        make_record("full", trial={"budget": "", "budget_parameters": None}, paper_recipe=RECIPE,
                    published=[{**quoted[0], "method": "full", "budget": "", "value": 0.77}])
    )  # fmt: skip
    found = texts(records, tmp_path)
    text = " ".join(Elements(found["index.html"]).text.split())
    assert "published 0.542 Llama-2-7b-hf, paper scale" in text
    assert "meta-llama/Llama-2-7b-hf, budget lora:r=8, paper scale" in text
    assert "meta-llama/Llama-2-7b-hf, all parameters, paper scale" in text
    assert "ours is of nano, the paper's of meta-llama/Llama-2-7b-hf" in text
    for shown in (found["leaderboard.md"], found["leaderboard.tex"], terminal_table(records)):
        assert "Published, Llama-2-7b-hf" in shown.replace("\\", "")
    (line,) = [each for each in csv.DictReader(io.StringIO(found["leaderboard.csv"])) if each["method"] == "lora"]
    assert line["published_model"] == "meta-llama/Llama-2-7b-hf"
    assert line["published_caveat"].startswith("ours is the smoke scale, not the paper's; ours is of nano")


def test_every_field_in_which_the_recipe_is_not_the_papers_is_named_with_both_values(make_record, tmp_path):
    ours = {"steps": 500, "batch_size": 16, "evaluate_at": [50], "schedule": "linear", "limit": 0}
    paper = {"steps": 0, "batch_size": 1_000, "evaluate_at": [300, 500], "schedule": "linear", "epochs": 100.0}
    quoted = [{**QUOTED, "model": "nano"}]
    record = make_record("lora", published=quoted, paper_recipe=paper, trial={"scale": "paper", "recipe": ours})
    found = texts([record], tmp_path)
    text = " ".join(Elements(found["index.html"]).text.split())
    note = "batch_size 16 (1,000), epochs absent (100), evaluate_at 50 (300 500), limit 0 (absent), steps 500 (0)."
    assert "5 of the recipe's fields are not the paper's" in text
    assert note in text
    assert note in terminal_table([record])
    assert "5 of 6 fields are not the paper scale's" in text
    assert "batch_size 16 1,000 differs" in text
    assert "schedule linear linear differs" not in text
    # Without a published number there is nothing to warn of; the recipes can still be compared.
    plain = texts([make_record("lora", paper_recipe=paper, trial={"recipe": ours})], tmp_path / "plain")["index.html"]
    assert "5 of 6 fields" in plain
    assert "in brackets" not in plain


def test_a_caveat_of_a_published_number_is_shown_with_whose_it_is(make_record, tmp_path):
    quoted = [{**QUOTED, "model": "nano", "caveat": "quoted there from another paper"}]
    record = make_record("lora", published=quoted, paper_recipe=RECIPE, trial={"scale": "paper"})
    found = texts([record], tmp_path)
    assert "Published for lora: quoted there from another paper." in Elements(found["index.html"]).text
    assert "quoted there from another paper" in found["leaderboard.md"]
    assert "quoted there from another paper" in found["leaderboard.csv"]


def test_the_adapted_layers_are_shown(make_record, tmp_path):
    records = [make_record("lora", trial={"targets": ("q_proj", "v_proj")}), make_record("mora")]
    text = Elements(texts(records, tmp_path)["index.html"]).text
    assert "q_proj, v_proj" in text
    assert "all linear layers but the head" in text


def test_no_published_number_no_column(site):
    assert "published" not in Elements(site["index.html"]).text.lower()
    assert "Published" not in site["leaderboard.md"]


def test_costs_are_of_a_solo_run_and_the_page_says_so(make_record, tmp_path):
    cost = {
        "train_seconds": 75.0, "step_seconds_solo": 0.0125, "tokens_per_second_solo": 81_920.0, "step_flops": 3.21e9,
        "peak_memory_bytes": 2**29, "pack_lanes": 4, "compiled": True,
    }  # fmt: skip
    found = texts([make_record(cost=cost)], tmp_path)
    text = " ".join(Elements(found["index.html"]).text.split())
    for part in ("12.5 ms", "81,900", "3.21 GFLOPs", "512 MiB", "4 at once, compiled"):
        assert part in text, part
    for name in ("index.html", "leaderboard.md", "leaderboard.tex"):
        assert "run alone, without data preparation and evaluation; never of a pack" in found[name]
    (line,) = csv.DictReader(io.StringIO(found["leaderboard.csv"]))
    assert (float(line["tokens_per_second_solo"]), float(line["step_flops"])) == (81_920, 3.21e9)


def test_a_score_on_a_part_of_the_data_is_marked(make_record, tmp_path):
    recipe = {"steps": 500, "limit": 8}
    records = [make_record(name, seed, 0.5, trial={"recipe": recipe}) for name in ("lora", "mora") for seed in (0, 1)]
    found = texts(records, tmp_path)
    page = Elements(found["index.html"])
    assert ("span", {"class": "badge"}) in page.tags
    rows = [make_record(name, trial={"task": "glue/rte", "recipe": {"test_rows": 8}}) for name in ("lora", "mora")]
    badge = re.search(r'<span class="badge">(.*?)</span>', texts(rows, tmp_path / "glue")["index.html"])
    assert badge.group(1) == "Evaluated on 8 items per set"
    assert page.text.count("Evaluated on 8 items per set") == 2  # beside the heading and in the summary
    assert "Evaluated on 8 items per set" in found["leaderboard.md"]
    assert "Evaluated on 8 items per set" in terminal_table(records)
    assert "limit=8, steps=500" in page.text  # the recipe itself


def test_a_family_is_averaged_over_the_tasks_that_every_method_finished(make_record, tmp_path):
    scores = {"glue/rte": (0.6, 0.8), "glue/mrpc": (0.9, 0.5), "glue/cola": (0.3, None)}
    records = [
        make_record(name, seed, score, trial={"task": task})
        for task, pair in scores.items()
        for name, score in zip(("lora", "mora"), pair, strict=True)
        for seed in (0, 1)
        if score is not None
    ]
    records.append(make_record("mora", 0, state=State.FAILED, trial={"task": "glue/cola"}))
    text = " ".join(Elements(texts(records, tmp_path)["index.html"]).text.split())
    assert "glue average over 2 of 3 tasks · smoke · nano · budget lora:r=8" in text
    assert "lora has the best average" in text
    assert (
        "Left out, since not every method has all seeds of it, or its trials are not one comparison: glue/cola." in text
    )
    # mrpc, then rte: (0.9 + 0.6) / 2 and (0.5 + 0.8) / 2
    assert "lora 0.7500 0.9000 0.6000 none" in text
    assert "mora 0.6500 0.5000 0.8000 cola" in text
    assert "glue, average over 2 of 3 tasks" in terminal_table(records)
    alone = [each for each in records if each.trial.task == "glue/rte"]
    assert "average over" not in terminal_table(alone)


def test_places_on_somebodys_machine_are_not_printed(make_record, tmp_path):
    places = {"command": "/home/ann/worker.py", "results_root": "/home/ann/results", "sweep": "uuid"}
    records = [make_record("a", environment=places), make_record("b", environment={**places, "command": "other"})]
    found = texts(records, tmp_path)
    assert not [name for name in FILES if "/home/ann" in found[name] or "worker.py" in found[name]]
    assert "command" not in Elements(found["index.html"]).text


TRICKS = "na\u202eme\x1b[31m\x07\u2066\r\nforged"  # right to left, colour, bell, isolate, a new line


def test_control_and_direction_characters_are_shown_nowhere(make_record, tmp_path):
    trial = {"task": f"fam/{TRICKS}", "model": TRICKS, "budget": TRICKS, "config": {TRICKS: TRICKS}}
    records = [make_record(TRICKS, seed, 0.5 + seed / 10, trial=trial) for seed in (0, 1)]
    records += [make_record("x", 0, state=State.FAILED, error={"message": TRICKS}, trial={**trial, "task": "solo"})]
    records += [make_record(TRICKS, seed, 0.5 + seed / 10, trial={**trial, "task": "fam/y"}) for seed in (0, 1)]
    page = texts(records, tmp_path)["index.html"]
    terminal = terminal_table(records)
    assert '<svg class="chart"' in page
    assert "fam, average over 2 of 2 tasks" in terminal
    for shown in (page, terminal):
        assert "na me" in shown
        assert not [each for each in shown if not each.isprintable() and each != "\n"]
    assert not re.search(r"^\s*forged", terminal, flags=re.MULTILINE)


FORMULAS = ("=1+2", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1")


@pytest.mark.parametrize("text", FORMULAS)
def test_no_text_of_the_csv_is_a_formula_and_numbers_stay_numbers(make_record, tmp_path, text):
    counts = {"budget_deviation_fraction": -0.5}
    build([make_record(text, score=-0.25, counts=counts, trial={"task": text})], tmp_path)
    with (tmp_path / "leaderboard.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert (line["method"], line["task"]) == (f"'{text}", f"'{text}")
    assert (line["score"], line["budget_deviation_fraction"]) == ("-0.25", "-0.5")


def test_the_csv_says_on_how_many_items_a_score_is(make_record, tmp_path):
    def items(name, recipe):
        found = texts([make_record(trial={"recipe": recipe})], tmp_path / name)["leaderboard.csv"]
        return next(csv.DictReader(io.StringIO(found)))["items_per_set"]

    assert items("rows", {"test_rows": 8}) == "8"
    assert items("both", {"test_rows": 80, "limit": 5}) == "5"
    assert items("text", {"limit": "=1"}) == ""


def test_reasons_stand_under_the_tables_of_the_page(site):
    found = re.findall(r"<li>(.*?)</li>", site["index.html"])
    for reason in (
        "Step, solo: no probe: --no-probe was given (lora)",
        "Rank: not ranked: 2 of 5 seeds did not finish (vera)",
    ):
        assert reason in found, reason
    assert "point at it" not in site["index.html"]


def test_a_reason_is_said_once_for_all_rows_and_columns(make_record, tmp_path):
    records = [make_record(name, state=State.FAILED) for name in "abcd"]
    text = texts(records, tmp_path)["leaderboard.md"]
    assert "- Rank: not ranked: no finished seed with a score (all rows)" in text
    (line,) = [each for each in text.splitlines() if ": no finished seed (all rows)" in each]
    assert line.startswith("- Accuracy; 95 % interval; Training; Step, solo; ")


def test_charts_say_of_which_split_they_are(make_record, tmp_path):
    page = texts([make_record()], tmp_path)["index.html"]
    text = " ".join(Elements(page).text.split())
    assert "Scores on the way are of the validation split; the final score, of the test split, is the table's." in text
    assert "Accuracy by step, on the validation split" in text
    assert '<th scope="col">step 450</th>' in page
    assert '<th scope="col">step 500</th>' not in page  # the records' last value is the final score


def family(make_record, change):
    """Two methods on two tasks; ``change`` is what differs in one method's trials of one task."""
    return [
        make_record(name, seed, score + seed / 100, trial={"task": task, **(change if is_odd else {})})
        for task in ("glue/mrpc", "glue/rte")
        for name, score in (("lora", 0.6), ("mora", 0.7))
        for seed in (0, 1)
        for is_odd in [(name, task) == ("mora", "glue/rte")]
    ]


@pytest.mark.parametrize("change", [{"precision": "bfloat16"}, {"recipe": {"steps": 5000}}, {"data": "other"}])
def test_a_task_that_is_not_one_comparison_is_left_out_of_the_average(make_record, change):
    text = terminal_table(family(make_record, change))
    assert "glue, average over 1 of 2 tasks" in text
    assert "or its trials are not one comparison: glue/rte." in text
    assert "average over 2 of 2 tasks" in terminal_table(family(make_record, {}))


def test_a_task_where_methods_ran_other_seeds_is_left_out_of_the_average(make_record):
    records = [each for each in family(make_record, {}) if not (each.trial.task == "glue/rte" and each.trial.seed)]
    records += [
        make_record("lora", 1, 0.6, trial={"task": "glue/rte"}),
        make_record("mora", 7, trial={"task": "glue/rte"}),
    ]
    text = terminal_table(records)
    assert "glue, average over 1 of 2 tasks" in text
    assert "not one comparison: glue/rte." in text


def test_an_average_says_that_units_differ_and_that_items_were_left_out(make_record):
    percent = {"accuracy": {"title": "Accuracy", "unit": "percent", "higher_is_better": True, "help": ""}}
    records = family(make_record, {})
    assert "units differ" not in terminal_table(records)
    assert "on a part of their items" not in terminal_table(records)
    part = {"task": "glue/cola", "recipe": {"test_rows": 8}}
    records += [
        make_record(name, seed, 50.0 + seed, metric_details=percent, trial=part)
        for name in ("lora", "mora")
        for seed in (0, 1)
    ]
    text = terminal_table(records)
    assert "The metrics' units differ: fraction, percent." in text
    assert "Some tasks were scored on a part of their items: not the whole data." in text


def test_boards_that_differ_in_the_main_metric_have_headings_of_their_own(make_record, tmp_path):
    records = [make_record(seed=0), make_record(seed=1, main_metric="loss", higher_is_better=False)]
    found = texts(records, tmp_path)
    heads = re.findall(r"<h2 id=.*?</h2>", found["index.html"])
    assert len(heads) == len(set(re.sub(r"board-\d", "", each) for each in heads)) == 2
    assert "budget lora:r=8 · by loss, lower is better</span>" in heads[1]
    assert len(set(re.findall(r"^## .*", found["leaderboard.md"], flags=re.MULTILINE))) == 2
