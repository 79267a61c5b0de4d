import csv
import html
import io
import json
import random
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from harness.contract.record import State
from harness_leaderboard.view.text import bytes_text, seconds_text

HOSTILE = "<script>alert(1)</script>\"'&|$x^2$ {{ 7*7 }} \\input{x}_%#~"


@pytest.fixture(scope="module")
def texts(make_files):
    return make_files


@pytest.fixture(scope="module")
def terminal_table(make_terminal):
    return make_terminal


@pytest.fixture(scope="module")
def site(example_records, make_files, tmp_path_factory):
    return make_files(example_records, tmp_path_factory.mktemp("site"))


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


def test_a_site_has_a_page_per_board_method_and_task_and_downloads_beside_each_board(site):
    names = set(site)
    assert {"index.html", "trial.html", "leaderboard.md", "leaderboard.csv", "leaderboard.tex"} <= names
    (board,) = [
        name.removesuffix(".html") for name in names if name.startswith("boards/uuid") and name.endswith("html")
    ]
    assert {f"{board}.{kind}" for kind in ("csv", "json", "md", "tex")} <= names
    assert len([name for name in names if name.startswith("methods/")]) == 9
    assert len([name for name in names if name.startswith("tasks/")]) == 2


def test_same_records_same_bytes_in_any_order(example_records, site, make_files, tmp_path):
    shuffled = list(example_records)
    random.Random(1).shuffle(shuffled)
    assert make_files(shuffled, tmp_path) == site


def test_same_bytes_in_another_process_with_another_hash_seed(site, tmp_path, example_records):
    for record in example_records:
        (tmp_path / f"{record.trial_id}.json").write_text(record.dumps())
    code = (
        "import sys; from harness_leaderboard.command import leaderboard; "
        "leaderboard(['--results', sys.argv[1], '-o', sys.argv[2]], standalone_mode=False)"
    )
    environment = {
        "PYTHONHASHSEED": "12345",
        "PYTHONPATH": ":".join(sys.path),
        "TZ": "Asia/Tokyo",
        "HOME": str(tmp_path),
    }
    subprocess.run([sys.executable, "-c", code, str(tmp_path), str(tmp_path / "out")], env=environment, check=True)
    for name in site:
        if name != "boards" and not name.startswith("data/trials/"):  # which link to the records, which lie there
            assert (tmp_path / "out" / name).read_text(encoding="utf-8") == site[name], name


def test_the_leaderboard_imports_no_torch():
    code = (
        "import sys, harness_leaderboard.command, harness_leaderboard.load, harness_leaderboard.write.html; "
        "print([name for name in ('torch', 'transformers', 'mlflow', 'sklearn', 'matplotlib') if name in sys.modules])"
    )
    environment = {"PYTHONPATH": ":".join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


def pages(site):
    return {name: text for name, text in site.items() if name.endswith(".html")}


def test_no_page_loads_anything_from_outside_the_site_and_every_link_leads_somewhere(site):
    for page, text in pages(site).items():
        for tag, attributes in Elements(text).tags:
            for name in ("src", "href", "xlink:href", "action", "srcset", "poster"):
                target = attributes.get(name, "").split("#")[0].replace("data:,", "")
                assert not re.match(r"[a-z]+:|//", target), (page, tag, attributes)
                folder = page.rpartition("/")[0]
                path = f"{folder}/{target}" if folder else target
                while re.search(r"[^/]+/\.\./", path):
                    path = re.sub(r"[^/]+/\.\./", "", path, count=1)
                assert target == "" or path in site or path.startswith("assets/"), (page, target)


def test_the_policy_lets_no_page_evaluate_text_or_talk_to_anybody(site):
    for text in pages(site).values():
        (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
        assert "unsafe" not in policy
        assert "default-src &#39;none&#39;" in policy
        assert "connect-src &#39;none&#39;" in policy


def test_no_page_has_a_script_or_a_style_in_its_text(site):
    for text in pages(site).values():
        for tag, attributes in Elements(text).tags:
            assert tag != "style"
            assert "style" not in attributes
            assert not [name for name in attributes if name.startswith("on")]
            assert tag != "script" or "src" in attributes or attributes.get("type") == "application/json"


def test_every_id_of_a_page_is_unique_and_every_label_exists(site):
    for text in pages(site).values():
        tags = Elements(text).tags
        ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        wanted = {each for _, attributes in tags for each in (attributes.get("aria-labelledby") or "").split()}
        assert wanted <= set(ids)


def test_pages_of_boards_that_are_gone_are_removed_and_nothing_else(make_record, texts, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    texts([make_record(), make_record(trial={"task": "c4"})], tmp_path)
    found = texts([make_record()], tmp_path)
    assert not [name for name in found if "c4" in name]
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_a_boards_address_does_not_change_when_another_task_is_added(make_record, texts, tmp_path):
    before = {
        name for name in texts([make_record()], tmp_path / "a") if name.startswith(("boards", "tasks", "methods"))
    }
    after = set(texts([make_record(), make_record(trial={"task": "another"})], tmp_path / "b"))
    assert before <= after


def test_the_first_lines_say_what_is_compared(site):
    text = " ".join(Elements(site["boards"]).text.split())
    for part in (
        "8 methods at the same budget, lora:r=8 (98,304 trained adapter parameters), reached within 0.60 %.",
        "Score: mean Accuracy over 5 seeds (0, 1, 2, 3, 4); higher is better.",
        "Two methods differ, on these items, if their groups share no letter",
        "Others are not told apart, which is not to say that they are equal.",
        "corrected for 21 pairs",
        "about 4 of 5 boards like this one, or more, would tell them apart; the smaller a difference, the more often",
        "Tuning: unequal. vera, oft: at a rate that nobody searched for",
    ):
        assert part in text


def test_the_page_shows_failures_ties_references_reasons_and_effort(site):
    text = " ".join(Elements(site["boards"]).text.split())
    for part in (
        "7 trials did not finish",
        "TrialDivergedError: loss became NaN",
        "out of memory",
        "Reference, outside the budget",
        "vera: its score is of the 3 seeds that finished",
        "Not ranked: 1 seed",
        "2 layers have settings of their own",
        "3 trials",
        "Tuning effort is not equal",
        "Learning-rate search",
        "Metrics by step",
        "step 250",
        "66 records",
    ):
        assert part in text, part
    first = " ".join(Elements(site["index.html"]).text.split())
    for part in ("hardware.device Test CPU", "generated-v1", "0123abc"):
        assert part in first, part
    assert "no probe: --no-probe was given" in site["boards"]


def test_every_interval_of_a_table_says_for_what_it_is(make_graded, make_record, make_view):
    with_items = [record for method in "ab" for record in make_graded(method, 0.7, range(4))]
    without = [make_record(m, s, 0.5 + 0.01 * s, trial={"task": "other"}) for m in "ab" for s in range(4)]
    view = make_view([*with_items, *without])
    grids = [grid for page in (*view.methods, *view.tasks) for _, some in page.grids for grid in some]
    grids += [grid for board in view.boards for _, some in board.details for grid in some]
    grids += [view.overview, *(board.scores for board in view.boards)]
    seen = set()
    for grid in grids:
        for place, column in enumerate(grid.columns):
            for cell in (row[place] for row in (*grid.rows, *grid.foot)):
                if "95 %" in column.title and not cell.is_missing:
                    said = f"{column.title} {cell.below}"
                    assert ("new items" in said) != ("these items" in said)
                    seen.add((column.title, cell.below))
    assert {("95 %", "new items"), ("95 %", "these items")} <= seen


def test_only_what_is_not_told_apart_wants_more_seeds(make_graded, make_view):
    abilities = {"a": 0.9, "b": 0.88, "c": 0.3}
    records = [record for method, ability in abilities.items() for record in make_graded(method, ability, range(5))]
    (board,) = make_view(records).boards
    ((pairs,),) = [grids for heading, grids in board.details if heading == "Pairs"]
    seeds = {(row[0].text, row[1].text): row[-1].text for row in pairs.rows}
    verdicts = {(row[0].text, row[1].text): row[-3].text for row in pairs.rows}
    assert set(verdicts.values()) == {"differ", "not told apart"}
    assert {pair for pair, text in seeds.items() if not text} == {pair for pair in seeds if verdicts[pair] == "differ"}


def test_how_sure_a_search_is_stands_beside_the_rate_that_it_chose(example_records, make_view):
    board = next(each for each in make_view(example_records).boards if each.task == "uuid")
    ((search,),) = [grids for heading, grids in board.details if heading == "Learning-rate search"]
    titles = [column.title for column in search.columns]
    rate, again = titles.index("Rate"), titles.index("Chosen again")
    for row in search.rows:
        assert bool(row[again].text) == (row[rate].text == "reported")
        assert "100" not in row[again].text  # two thousand draws prove no certainty


def test_the_intervals_drawn_are_explained_beside_the_figure(make_graded, make_record, make_files, tmp_path):
    def legend(records, folder):
        text = " ".join(Elements(make_files(records, tmp_path / folder)["boards"]).text.split())
        return [part in text for part in ("thick: 95 %, these items", "thin: 95 %, new items", "one seed")]

    assert legend([each for name in "ab" for each in make_graded(name, 0.5, range(3))], "items") == [True] * 3
    assert legend([make_record(name, seed, 0.5 + seed / 9) for name in "ab" for seed in range(3)], "none") == [
        True,
        False,
        True,
    ]


def test_a_reference_far_off_does_not_press_the_methods_onto_each_other(make_record, make_reference, make_view):
    methods = [
        make_record(name, seed, 0.5 + place / 50 + seed / 200) for place, name in enumerate("ab") for seed in range(3)
    ]
    (near,) = make_view([*methods, *(make_reference(seed, 0.53 + seed / 200) for seed in range(3))]).boards
    (far,) = make_view([*methods, *(make_reference(seed, 0.01 + seed / 200) for seed in range(3))]).boards
    assert [bar["beyond"] for bar in near.bars] == [0, 0, 0]
    assert [bar["beyond"] for bar in far.bars] == [0, 0, -1]
    assert abs(far.bars[0]["score"] - far.bars[1]["score"]) > 0.1


def guessing(level, unit="fraction"):
    return {"accuracy": {"title": "Accuracy", "unit": unit, "higher_is_better": True, "help": "", "chance": level}}


def test_what_guessing_scores_is_said_and_drawn_and_so_is_who_may_be_guessing(make_graded, make_view):
    def board(level, *abilities):
        records = [
            each
            for place, ability in enumerate(abilities)
            for each in make_graded("ab"[place], ability, range(4), metric_details=guessing(level))
        ]
        (found,) = make_view(records).boards
        (said,) = (each for each in found.sentences if each.startswith("Guessing"))
        return found, said

    near, said = board(0.5, 0.5, 0.5)
    assert said.endswith("scores 0.500.")
    assert near.notes[0].startswith("No method is told apart from guessing, which scores 0.500: nothing here shows")
    assert near.leaders == "a, b, not told apart; none is told apart from guessing"
    assert 0 < near.axis["chance"] < 1
    far, said = board(0.02, 0.79, 0.8)
    assert said.endswith("scores 0.020. Proven better: all methods.")
    assert far.axis["chance"] is None, "a line far off would press the methods onto each other"
    assert not any("guessing" in note for note in far.notes)
    mixed, said = board(0.5, 0.5, 0.8)
    assert said.endswith("Not proven better, all methods looked at together: a.")
    assert [values["beats_chance"] for values in mixed.values] == [True, False]
    assert {values["chance"] for values in mixed.values} == {0.5}


def test_records_that_do_not_say_what_guessing_scores_have_no_such_line(make_graded, make_view):
    (board,) = make_view([each for name in "ab" for each in make_graded(name, 0.5, range(3))]).boards
    assert "uessing" not in " ".join([*board.sentences, *board.notes, board.leaders])
    assert board.axis["chance"] is None


def test_other_metrics_say_what_guessing_scores_where_they_are_explained(make_record, make_view):
    details = {**guessing(None), "other": {"title": "Other", "unit": "fraction", "help": "Of it.", "chance": 0.25}}
    records = [
        make_record(
            name, seed, 0.5 + seed / 9, metrics={"accuracy": 0.5 + seed / 9, "other": 0.3}, metric_details=details
        )
        for name in "ab"
        for seed in range(2)
    ]
    (board,) = make_view(records).boards
    notes = [note for _, grids in board.details for each in grids for note in each.notes]
    assert "Other: Of it. Guessing scores 0.25." in notes


@pytest.mark.parametrize(
    ("unit", "scores", "text"),
    [
        ("fraction", (0.0, 1.0), "0 … 1"),
        ("fraction", (1.0, 1.0), "0.95 … 1"),
        ("correlation", (-0.99, 0.2), "−1 … 1"),
        ("points", (0.0, 1.0), "−1 … 2"),
    ],
)
def test_an_axis_ends_where_the_metric_does(unit, scores, text, make_record, make_view):
    records = [
        make_record(name, seed, score, metric_details=guessing(None, unit))
        for name in "ab"
        for seed, score in enumerate(scores)
    ]
    (board,) = make_view(records).boards
    assert board.axis["text"] == text


def grids_of(pages_or_details, title):
    return [grid for name, grids in pages_or_details if name == title for grid in grids]


def test_settings_of_single_layers_are_text_and_one_recipe_is_said_once(make_record, make_view):
    own = {"layer_settings": {f"layers.{layer}.q_proj": {"rank": 9} for layer in range(3)}}
    records = [make_record("a", 0), make_record("b", 0, trial=own)]
    (board,) = make_view(records).boards
    (grid,) = grids_of(board.details, "Settings")
    (column,) = (each for each in grid.columns if each.title == "On single layers")
    assert not column.is_number, "long text that does not wrap lies over the next columns"
    assert "Recipe" not in [each.title for each in grid.columns]
    assert grid.notes[0] == "The recipe of all rows: batch_size=16, steps=500"
    other = make_record("c", 0, trial={"recipe": {"steps": 7, "batch_size": 16}})
    (grid,) = grids_of(make_view([*records, other]).boards[0].details, "Settings")
    assert [row[-1].text for row in grid.rows] == ["batch_size=16, steps=500"] * 2 + ["batch_size=16, steps=7"]


def test_a_methods_page_says_where_layers_have_other_settings_and_what_guessing_scores(make_record, make_view):
    own = {"layer_settings": {"layers.0.q_proj": {"rank": 9}}}
    view = make_view([make_record("a", seed, trial=own, metric_details=guessing(0.25)) for seed in range(2)])
    (grid,) = grids_of(view.methods[0].grids, "Results")
    below = {column.title: cell.below for column, cell in zip(grid.columns, grid.rows[0], strict=True)}
    assert below["Settings"] == "1 layer has settings of its own"
    assert below["Score"].startswith("guessing 0.25")


def test_very_many_files_that_are_passed_over_do_not_fill_the_first_page(make_record, make_files, tmp_path):
    passed_over = {f"f{number:02}": "not JSON" for number in range(20)}
    page = make_files([make_record()], tmp_path, passed_over=passed_over)["index.html"]
    shown, _, more = page.partition("<summary>17 more</summary>")
    assert "f02: not JSON" in shown
    assert "f03: not JSON" not in shown
    assert "f19: not JSON" in more


def test_references_are_not_counted_among_the_methods_that_a_board_compares(make_record, make_reference, make_view):
    records = [make_record(name, seed) for name in "ab" for seed in range(2)]
    view = make_view([*records, *(make_reference(seed) for seed in range(2))])
    (grid,) = (grid for page in view.tasks for title, grids in page.grids if title == "Boards" for grid in grids)
    for table in (view.overview, grid):
        place = next(number for number, column in enumerate(table.columns) if column.title == "Methods")
        ((cell,),) = ([row[place]] for row in table.rows)
        assert (cell.text, cell.below) == ("2", "a, b · beside: full")
    alone = make_view([make_reference(seed) for seed in range(2)]).overview
    assert [cell.text for cell in alone.rows[0] if cell.below == "beside: full"] == ["0"]


def test_a_board_whose_methods_were_not_tuned_says_so_everywhere(make_record, texts, tmp_path):
    def said(records, folder):
        found = texts(records, tmp_path / folder)
        first, board = (" ".join(Elements(found[name]).text.split()) for name in ("index.html", "boards"))
        return first, board, " ".join(found["leaderboard.md"].split())

    plain = [make_record(name, seed, 0.5 + seed / 9) for name in "ab" for seed in range(3)]
    for text in said(plain, "plain")[1:]:
        assert (
            "Tuning: none. Each method ran at the learning rate that its row shows, which nobody searched for" in text
        )
    assert "same tuning effort" not in said(plain, "plain")[0]
    tune = [
        make_record(name, 100, 0.5, trial={"learning_rate": rate, "purpose": "tune"})
        for name in "ab"
        for rate in (3e-4, 1e-3, 3e-3)
    ]
    first, board, _ = said([*plain, *tune], "tuned")
    assert "Tuning trials" in first
    assert "Tuning: 3 trials for each method, to choose its learning rate on validation data." in board


def test_a_reference_has_no_rank_no_letter_and_no_standing(make_record, make_reference, texts, tmp_path):
    records = [make_record(name, seed, 0.5 + seed / 9) for name in "ab" for seed in range(3)]
    records += [make_reference(seed, 0.9 + seed / 99) for seed in range(3)]
    found = texts(records, tmp_path)
    (line,) = [each for each in csv.DictReader(io.StringIO(found["leaderboard.csv"])) if each["method"] == "full"]
    assert (line["rank_best"], line["rank_worst"], line["letters"]) == ("", "", "")
    assert line["not_ranked_because"] == "reference, outside the budget"
    assert float(line["score"]) == pytest.approx(0.91, abs=0.001)
    first = " ".join(Elements(found["index.html"]).text.split())
    assert "not ranked on any board, so compared with no other (full)" in first


def test_tables_have_captions_and_scopes(site):
    tags = Elements(site["boards"]).tags
    names = [tag for tag, _ in tags]
    assert names.count("table") == names.count("caption")
    assert all("scope" in attributes for tag, attributes in tags if tag == "th")


def test_hostile_names_are_text_everywhere(make_record, tmp_path, texts):
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
    for text in pages(found).values():
        assert all("src" in each or "type" in each for tag, each in Elements(text).tags if tag == "script")
        assert "<script>alert" not in text
    page = Elements(found["boards"])
    assert HOSTILE in page.text
    shards = [text for name, text in found.items() if name.startswith("data/trials/")]
    assert shards
    assert all(json.loads(re.fullmatch(r"leaderboard\.trials\((.*)\);\n", text).group(1)) for text in shards)
    assert "49 \\input" not in page.text  # nothing in a record is a template
    assert "<script" not in found["leaderboard.md"]
    table_lines = [line for line in found["leaderboard.md"].splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table_lines}) == 1  # no name opens a column
    body = found["leaderboard.tex"].split("\n", 1)[1]
    assert "\\input{x}" not in body
    assert not re.search(r"(?<!\\)[%#]", body)
    (line,) = csv.DictReader(io.StringIO(found["leaderboard.csv"]))
    assert line["method"] == HOSTILE


def test_a_record_cannot_steer_the_terminal(make_record, terminal_table):
    assert "\x1b" not in terminal_table(
        [make_record("evil\x1b[2J"), make_record("x", state=State.FAILED, error={"message": "\x1b]0;"})]
    )


def test_csv_holds_unrounded_numbers_and_empty_gaps(make_record, make_reference, tmp_path, texts):
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
    assert re.search(r"\|\s+1–\d\s+\| [a-z]+\s+\| dora", text)
    assert "vera: its score is of the 3 seeds that finished; seed 3 diverged, seed 4 out of memory." in text
    assert "Step, solo; Step / lora: no probe: --no-probe was given (lora)" in text
    assert "vera, report, lr 0.001, seed 3: diverged at step 200: TrialDivergedError: loss became NaN" in text


def test_latex_has_a_booktabs_table_per_board(site):
    text = site["leaderboard.tex"]
    assert text.count("\\begin{table}") == text.count("\\end{table}") == text.count("\\toprule") == 2
    assert "out of memory at step 200" in text
    assert "—" not in text
    for line in text.splitlines():
        if line.endswith("\\\\"):
            assert len(re.findall(r"(?<!\\)&", line)) in (9, 10, 11)  # a column without values is left out


def test_methods_of_equal_scores_in_every_seed_get_no_number_for_what_would_be_seen(make_record, terminal_table):
    items = [[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 0.0, 1.0]]
    text = terminal_table(
        [
            make_record(method, seed, sum(items[seed]) / 4, items=items[seed])
            for method in ("lora", "mora")
            for seed in range(2)
        ]
    )
    assert "In every seed these methods have the same score" in text
    assert "truly differed" not in text


def test_terminal_table_shows_ranks_failures_and_notes(example_records, terminal_table):
    text = terminal_table(example_records)
    assert re.search(r"^ +1–\d  [a-z]+ +dora", text, flags=re.MULTILINE)
    assert "7 trials did not finish:" in text
    assert "Rank: not ranked: no finished seed with a score (oft)" in text
    assert "! Tuning effort is not equal" in text
    assert re.search(r"ref.  —  *full", text)


def test_mixed_hardware_is_on_the_page_and_in_markdown(make_record, tmp_path, texts):
    other = {"hardware": {"device": "Other GPU"}}
    found = texts([make_record("a"), make_record("b", environment=other)], tmp_path)
    assert "Mixed environment, hardware.device: Other GPU (b); Test CPU (a)" in Elements(found["boards"]).text
    assert "Mixed environment" in found["leaderboard.md"]


@pytest.mark.parametrize(("device", "is_said"), [("cuda", False), ("cpu", True)])
def test_the_hosts_of_gpus_are_no_mixed_hardware(make_record, tmp_path, texts, device, is_said):
    hosts = [{"device": device, "threads": count, "cpu_count": 2 * count} for count in (8, 64)]
    found = texts([make_record("a", environment=hosts[0]), make_record("b", environment=hosts[1])], tmp_path)
    for key in ("threads", "cpu_count"):
        assert (f"Mixed environment, {key}" in Elements(found["boards"]).text) is is_said


def test_what_tasks_say_of_their_scoring_is_no_mixed_hardware(make_record, tmp_path, texts):
    said = [{"scoring": {"judge": f"{count} of 2 with a verdict"}} for count in (1, 2)]
    found = texts([make_record("a", environment=said[0]), make_record("b", environment=said[1])], tmp_path)
    assert "Mixed environment" not in found["leaderboard.md"]


def test_no_records_make_an_honest_empty_page(tmp_path, texts, terminal_table):
    found = texts([], tmp_path)
    assert "There are no records to show." in found["index.html"]
    assert terminal_table([]) == "No records."


def test_a_board_where_everything_failed_is_a_page(make_record, tmp_path, texts):
    found = texts([make_record("a", seed, state=State.FAILED, history=()) for seed in (0, 1)], tmp_path)
    assert "2 trials did not finish" in Elements(found["boards"]).text


def test_references_alone_make_a_board_without_ranks(make_reference, tmp_path, texts):
    text = Elements(texts([make_reference(0), make_reference(1)], tmp_path)["boards"]).text
    assert "Only reference methods" in text
    assert "full" in text


def test_a_score_that_never_varies_is_drawn(make_record, tmp_path, texts):
    records = [make_record(name, seed, 0.0, history=()) for name in "ab" for seed in (0, 1)]
    found = texts(records, tmp_path)
    assert "1–2" in found["boards"]
    assert "seeds that agree exactly give no width; that is no certainty" in found["leaderboard.md"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.314, "8.31 s"), (59.96, "60 s"), (250, "4 min 10 s"), (3599.7, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_durations(seconds, text):
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (512, "512 B"),
        (999.7 * 1024, "1000 KiB"),
        (1010 * 1024, "1010 KiB"),
        (432013312, "412 MiB"),
        (1.5 * 2**30, "1.5 GiB"),
    ],
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


def test_a_published_number_is_beside_ours_with_its_source_and_why_it_is_not_comparable(
    make_record, tmp_path, texts, terminal_table
):
    entries = [{**QUOTED, "step": 900}, {**QUOTED, "step": 250, "value": 0.101}, {**QUOTED, "method": "vera"}]
    records = [make_record("lora", seed, 0.5, published=entries) for seed in (0, 1)]
    records += [make_record("mora", seed, 0.4) for seed in (0, 1)]
    found = texts(records, tmp_path)
    text = " ".join(Elements(found["boards"]).text.split())
    assert "0.542 at step 900" in text
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


def test_a_published_number_of_our_model_scale_and_recipe_has_no_reservation(make_record, tmp_path, texts):
    quoted = [{**QUOTED, "model": "nano"}, {**QUOTED, "budget": "lora:r=256", "value": 0.9}]
    record = make_record("lora", published=quoted, paper_recipe=RECIPE, trial={"scale": "paper"})
    text = Elements(texts([record], tmp_path)["boards"]).text
    assert "0.542" in text
    assert "nothing known against it" in text
    assert "not comparable" not in text
    assert "0 of 2 fields are not the paper scale's" in text
    assert "0.9" not in text  # of another budget


def test_the_papers_model_and_scale_stand_beside_each_published_number(make_record, tmp_path, texts, terminal_table):
    quoted = [{**QUOTED, "method": "lora:alpha=16", "model": "meta-llama/Llama-2-7b-hf"}]
    records = [make_record("lora", seed, 0.5, published=quoted, paper_recipe=RECIPE) for seed in (0, 1)]
    records.append(
        make_record("full", trial={"budget": "", "budget_parameters": None}, paper_recipe=RECIPE,
                    published=[{**quoted[0], "method": "full", "budget": "", "value": 0.77}])
    )  # fmt: skip
    found = texts(records, tmp_path)
    text = " ".join(Elements(found["boards"]).text.split())
    assert "0.542 Llama-2-7b-hf, paper scale" in text
    assert "meta-llama/Llama-2-7b-hf, budget lora:r=8, paper scale" in text
    assert "meta-llama/Llama-2-7b-hf, all parameters, paper scale" in text
    assert "ours is of nano, the paper's of meta-llama/Llama-2-7b-hf" in text
    for shown in (found["leaderboard.md"], found["leaderboard.tex"], terminal_table(records)):
        assert "Published, Llama-2-7b-hf" in shown.replace("\\", "")
    (line,) = [each for each in csv.DictReader(io.StringIO(found["leaderboard.csv"])) if each["method"] == "lora"]
    assert line["published_model"] == "meta-llama/Llama-2-7b-hf"
    assert line["published_caveat"].startswith("ours is the smoke scale, not the paper's; ours is of nano")


def test_every_field_in_which_the_recipe_is_not_the_papers_is_named_with_both_values(
    make_record, tmp_path, texts, terminal_table
):
    ours = {"steps": 500, "batch_size": 16, "evaluate_at": [50], "schedule": "linear", "limit": 0}
    paper = {"steps": 0, "batch_size": 1_000, "evaluate_at": [300, 500], "schedule": "linear", "epochs": 100.0}
    quoted = [{**QUOTED, "model": "nano"}]
    record = make_record("lora", published=quoted, paper_recipe=paper, trial={"scale": "paper", "recipe": ours})
    found = texts([record], tmp_path)
    text = " ".join(Elements(found["boards"]).text.split())
    note = "batch_size 16 (1,000), epochs absent (100), evaluate_at 50 (300 500), limit 0 (absent), steps 500 (0)."
    assert "5 of the recipe's fields are not the paper's" in text
    assert note in text
    assert note in terminal_table([record])
    assert "5 of 6 fields are not the paper scale's" in text
    assert "batch_size 16 1,000 differs" in text
    assert "schedule linear linear differs" not in text
    # Without a published number there is nothing to warn of; the recipes can still be compared.
    plain = texts([make_record("lora", paper_recipe=paper, trial={"recipe": ours})], tmp_path / "plain")["boards"]
    assert "5 of 6 fields" in plain
    assert "in brackets" not in plain


def test_a_caveat_of_a_published_number_is_shown_with_whose_it_is(make_record, tmp_path, texts):
    quoted = [{**QUOTED, "model": "nano", "caveat": "quoted there from another paper"}]
    record = make_record("lora", published=quoted, paper_recipe=RECIPE, trial={"scale": "paper"})
    found = texts([record], tmp_path)
    assert "Published for lora: quoted there from another paper." in Elements(found["boards"]).text
    assert "quoted there from another paper" in found["leaderboard.md"]
    assert "quoted there from another paper" in found["leaderboard.csv"]


def test_the_adapted_layers_are_shown(make_record, tmp_path, texts):
    records = [make_record("lora", trial={"targets": ("q_proj", "v_proj")}), make_record("mora")]
    text = Elements(texts(records, tmp_path)["boards"]).text
    assert "q_proj, v_proj" in text
    assert "all linear layers but the head" in text


def test_no_published_number_no_column(site):
    assert "published" not in Elements(site["boards"]).text.lower()
    assert "Published" not in site["leaderboard.md"]


def test_costs_are_of_a_solo_run_and_the_page_says_so(make_record, tmp_path, texts):
    cost = {
        "train_seconds": 75.0, "step_seconds_solo": 0.0125, "tokens_per_second_solo": 81_920.0, "step_flops": 3.21e9,
        "peak_memory_bytes": 2**29, "pack_lanes": 4, "compiled": True,
    }  # fmt: skip
    found = texts([make_record(cost=cost)], tmp_path)
    text = " ".join(Elements(found["boards"]).text.split())
    for part in ("12.5 ms", "81,900", "3.21", "512 MiB", "4 at once, compiled"):
        assert part in text, part
    for name in ("boards", "leaderboard.md", "leaderboard.tex"):
        assert "run alone, without data preparation and evaluation; never of a pack" in found[name]
    (line,) = csv.DictReader(io.StringIO(found["leaderboard.csv"]))
    assert (float(line["tokens_per_second_solo"]), float(line["step_flops"])) == (81_920, 3.21e9)


def test_a_score_on_a_part_of_the_data_is_marked(make_record, tmp_path, texts, terminal_table):
    recipe = {"steps": 500, "limit": 8}
    records = [make_record(name, seed, 0.5, trial={"recipe": recipe}) for name in ("lora", "mora") for seed in (0, 1)]
    found = texts(records, tmp_path)
    page = Elements(found["boards"])
    assert ("span", {"class": "badge"}) in page.tags
    rows = [make_record(name, trial={"task": "glue/rte", "recipe": {"test_rows": 8}}) for name in ("lora", "mora")]
    badge = re.search(r'<span class="badge">(.*?)</span>', texts(rows, tmp_path / "glue")["boards"])
    assert badge.group(1) == "Evaluated on 8 items per set"
    assert page.text.count("Evaluated on 8 items per set") == 2  # beside the heading and in the summary
    assert "Evaluated on 8 items per set" in found["leaderboard.md"]
    assert "Evaluated on 8 items per set" in terminal_table(records)
    assert "limit=8, steps=500" in page.text  # the recipe itself


def test_a_family_is_averaged_over_the_tasks_that_every_method_finished(make_record, tmp_path, texts, terminal_table):
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
    assert "glue, average over 2 of 3 tasks · smoke · nano · budget lora:r=8" in text
    assert (
        "Left out, since not every method has all seeds of it, or its trials are not one comparison: glue/cola." in text
    )
    # mrpc, then rte: (0.9 + 0.6) / 2 and (0.5 + 0.8) / 2
    assert "lora 0.7500 0.9000 0.6000 none" in text
    assert "mora 0.6500 0.5000 0.8000 cola" in text
    assert "glue, average over 2 of 3 tasks" in terminal_table(records)
    alone = [each for each in records if each.trial.task == "glue/rte"]
    assert "average over" not in terminal_table(alone)


def test_what_a_reference_lacks_leaves_no_task_out_of_the_average_but_the_reference(make_record, terminal_table):
    outside = {"task": "glue/rte", "budget": "", "budget_parameters": None}
    records = [*family(make_record, {}), *(make_record("full", seed, 0.9, trial=outside) for seed in (0, 1))]
    text = terminal_table(records)
    assert "glue, average over 2 of 2 tasks" in text
    (line,) = re.findall(r"full \(reference\).*mrpc$", text, flags=re.MULTILINE)
    assert line.split()[2:] == ["—", "—", "0.9000", "mrpc"]


def test_places_on_somebodys_machine_are_not_printed(make_record, tmp_path, texts):
    places = {"command": "/home/ann/worker.py", "results_root": "/home/ann/results", "sweep": "uuid"}
    records = [make_record("a", environment=places), make_record("b", environment={**places, "command": "other"})]
    found = texts(records, tmp_path)
    assert not [name for name, text in found.items() if "/home/ann" in text or "worker.py" in text]


TRICKS = "na\u202eme\x1b[31m\x07\u2066\r\nforged"  # right to left, colour, bell, isolate, a new line


def test_control_and_direction_characters_are_shown_nowhere(make_record, tmp_path, texts, terminal_table):
    trial = {"task": f"fam/{TRICKS}", "model": TRICKS, "budget": TRICKS, "config": {TRICKS: TRICKS}}
    records = [make_record(TRICKS, seed, 0.5 + seed / 10, trial=trial) for seed in (0, 1)]
    records += [make_record("x", 0, state=State.FAILED, error={"message": TRICKS}, trial={**trial, "task": "solo"})]
    records += [make_record(TRICKS, seed, 0.5 + seed / 10, trial={**trial, "task": "fam/y"}) for seed in (0, 1)]
    found = texts(records, tmp_path)
    page = found["boards"] + found["index.html"]
    terminal = terminal_table(records)
    assert "fam, average over 2 of 2 tasks" in terminal
    for shown in (page, terminal):
        assert "na me" in shown
        assert not [each for each in shown if not each.isprintable() and each != "\n"]
    assert not re.search(r"^\s*forged", terminal, flags=re.MULTILINE)


FORMULAS = ("=1+2", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1")


@pytest.mark.parametrize("text", FORMULAS)
def test_no_text_of_the_csv_is_a_formula_and_numbers_stay_numbers(make_record, texts, tmp_path, text):
    counts = {"budget_deviation_fraction": -0.5}
    texts([make_record(text, score=-0.25, counts=counts, trial={"task": text})], tmp_path)
    with (tmp_path / "leaderboard.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert (line["method"], line["task"]) == (f"'{text}", f"'{text}")
    assert (line["score"], line["budget_deviation_fraction"]) == ("-0.25", "-0.5")


def test_the_csv_says_on_how_many_items_a_score_is(make_record, tmp_path, texts):
    def items(name, recipe):
        found = texts([make_record(trial={"recipe": recipe})], tmp_path / name)["leaderboard.csv"]
        return next(csv.DictReader(io.StringIO(found)))["items_per_set"]

    assert items("rows", {"test_rows": 8}) == "8"
    assert items("both", {"test_rows": 80, "limit": 5}) == "5"
    assert items("text", {"limit": "=1"}) == ""


def test_reasons_stand_under_the_tables_of_the_page(site):
    found = re.findall(r"<li>(.*?)</li>", site["boards"])
    for reason in (
        "Step, solo; Step / lora: no probe: --no-probe was given (lora)",
        "Rank: not ranked: no finished seed with a score (oft)",
    ):
        assert reason in found, reason
    assert "point at it" not in site["boards"]


def test_a_reason_is_said_once_for_all_rows_and_columns(make_record, tmp_path, texts):
    records = [make_record(name, state=State.FAILED) for name in "abcd"]
    text = texts(records, tmp_path)["leaderboard.md"]
    assert "- Rank: not ranked: no finished seed with a score (all rows)" in text
    (line,) = [each for each in text.splitlines() if ": no finished seed (all rows)" in each]
    assert line.startswith("- Accuracy; 95 %, new items; 95 %, these items; Training; Step, solo; ")


def test_charts_say_of_which_split_they_are(make_record, tmp_path, texts):
    page = texts([make_record()], tmp_path)["boards"]
    text = " ".join(Elements(page).text.split())
    assert "Means over finished seeds, in training or on validation" in text
    assert "Accuracy by step, on the validation split" in text
    assert ">step 450</th>" in page
    assert ">step 500</th>" not in page  # the records' last value is the final score


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
def test_a_task_that_is_not_one_comparison_is_left_out_of_the_average(make_record, change, terminal_table):
    text = terminal_table(family(make_record, change))
    assert "glue, average over 1 of 2 tasks" in text
    assert "or its trials are not one comparison: glue/rte." in text
    assert "average over 2 of 2 tasks" in terminal_table(family(make_record, {}))


def test_a_task_where_methods_ran_other_seeds_is_left_out_of_the_average(make_record, terminal_table):
    records = [each for each in family(make_record, {}) if not (each.trial.task == "glue/rte" and each.trial.seed)]
    records += [
        make_record("lora", 1, 0.6, trial={"task": "glue/rte"}),
        make_record("mora", 7, trial={"task": "glue/rte"}),
    ]
    text = terminal_table(records)
    assert "glue, average over 1 of 2 tasks" in text
    assert "not one comparison: glue/rte." in text


def test_an_average_says_that_units_differ_and_that_items_were_left_out(make_record, terminal_table):
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


def test_boards_that_differ_in_the_main_metric_have_headings_of_their_own(make_record, tmp_path, texts):
    records = [make_record(seed=0), make_record(seed=1, main_metric="loss", higher_is_better=False)]
    found = texts(records, tmp_path)
    heads = re.findall(r"<h1>.*?</h1>", found["boards"])
    assert len(heads) == len(set(heads)) == 2
    assert any("budget lora:r=8 · by loss, lower is better</span>" in head for head in heads)
    assert len(set(re.findall(r"^## .*", found["leaderboard.md"], flags=re.MULTILINE))) == 2


def test_a_share_of_a_pack_s_time_is_called_one_wherever_it_is_shown(make_record, make_files, make_terminal, tmp_path):
    def records(lanes):
        cost = {"train_seconds": 75.0, "pack_lanes": lanes}
        return [make_record(method, seed, 0.5, cost=cost) for method in ("lora", "mora") for seed in (0, 1)]

    said, alone = "Training is each trial's share of the time of those that trained together, 4 at once", records(1)
    files = make_files(records(4), tmp_path / "together")
    pages = [name for name in files if name in ("leaderboard.md", "leaderboard.tex") or name.startswith("boards/")]
    shown = [" ".join(html.unescape(files[name]).split()) for name in pages if not name.endswith((".csv", ".json"))]
    assert len(shown) == 5  # a page, and all boards and one as Markdown and LaTeX
    for text in (*shown, make_terminal(records(4))):
        assert said in text
    assert said[:30] not in make_terminal(alone)
    assert said[:30] not in make_files(alone, tmp_path / "alone")["leaderboard.md"]
