"""The site in a real browser, from a disk. Skipped, and saying so, where there is none."""

import json
import re
import shutil
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest

from harness.contract.analysis import LayerFindings
from harness.contract.record import State
from harness.results.findings import About, Findings
from harness_leaderboard.command import view_of
from harness_leaderboard.live import Site, server
from harness_leaderboard.load import load
from harness_leaderboard.write.html import write_site

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
AXE = Path(__file__).parent / "vendor" / "axe.min.js"


LAYERS = {f"0.{name}": LayerFindings({"size": size}) for name, size in (("q", 1.0), ("v", 2.0))}
FOUND = Findings(
    "size", {"r": 8}, {"trial_id": "a", "label": "uuid/lora/lr1/s0", "model": "nano"}, LAYERS,
    About(title="Sizes", paper="https://example.org", claim="it grows", columns={"size": "of it"}),
)  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    executable = next((found for name in NAMES if (found := shutil.which(name))), None)
    if executable is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the PATH")
    playwright = pytest.importorskip("playwright.sync_api", reason="the playwright package is not installed")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=executable, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def site(example_records, make_record, make_graded, make_files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("a site with? signs#")
    long_name = make_record("a-method-with-a-very-long-name-" * 4, 0, 0.4)
    graded = [
        each
        for name, ability in (("lora", 0.5), ("dora", 0.9), ("mora", 0.5))
        for budget in ("lora:r=8", "lora:r=16")
        for each in make_graded(name, ability, range(4), 60, trial={"task": "glue/rte", "budget": budget})
    ]
    make_files([*example_records, *graded, long_name], folder, findings=[FOUND])
    return folder


def first(site, pattern):
    return sorted(site.glob(pattern))[0].relative_to(site).as_posix()


@pytest.fixture(scope="module")
def places(site):
    """Return a page of every kind."""
    board = first(site, "boards/uuid*.html")
    trial = re.search(r"trial\.html#[0-9a-f]{16}", (site / board).read_text())[0]
    return {
        "overview": "index.html",
        "board": board,
        "items": first(site, "boards/glue*.html"),
        "method": first(site, "methods/dora*.html"),
        "task": first(site, "tasks/glue*.html"),
        "analysis": first(site, "analyses/*.html"),
        "trial": trial,
    }


@pytest.fixture
def visit(browser, site, places):
    """Return a function that opens a page; in the end, no page may have complained or asked for anything outside."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    problems, requests = [], []

    def opened(kind, hash_="", **media):
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        if media:
            page.emulate_media(**media)
        path, _, own = places.get(kind, kind).partition("#")
        page.goto((site / path).as_uri() + (f"#{own or hash_}" if own or hash_ else ""))
        expect = pytest.importorskip("playwright.sync_api").expect
        expect(page.locator("figure:not([hidden]) > .canvas:empty:visible")).to_have_count(0)
        return page

    yield opened
    context.close()
    assert problems == []
    assert [url for url in requests if not url.startswith((site.as_uri(), "data:", "blob:"))] == []


KINDS = ("overview", "board", "items", "method", "task", "analysis", "trial")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_axe_finds_nothing_on_any_kind_of_page(visit, kind, scheme):
    page = visit(kind, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate(
        "axe.run({preload: false}).then(found => found.violations.map(each => "
        "`${each.id}: ${each.help}: ${each.nodes.slice(0, 3).map(node => node.html.slice(0, 200)).join(' | ')}`))"
    )
    assert found == []


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("kind", KINDS)
def test_no_page_scrolls_sideways(visit, kind, width):
    page = visit(kind)
    page.set_viewport_size({"width": width, "height": 844})
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def texts(page, selector):
    return [each.strip() for each in page.locator(selector).all_inner_texts()]


def test_the_overview_is_filtered_searched_and_its_address_says_so(visit):
    page = visit("overview")
    assert len(texts(page, "#overview tbody tr")) == 4
    page.locator("[data-filter=task]").select_option("uuid")
    assert texts(page, "#overview tbody th") == ["uuid"]
    assert page.locator("#filters-count").inner_text() == "1 of 4 boards"
    assert "task=uuid" in page.url
    page.get_by_role("button", name="Clear").click()
    page.locator("[data-filter=methods]").select_option("vera")
    assert texts(page, "#overview tbody th") == ["uuid"]
    page.locator("[data-filter=methods]").select_option("full")  # which stands beside what is compared
    assert texts(page, "#overview tbody th") == ["uuid"]
    page.get_by_role("button", name="Clear").click()
    page.get_by_label("Search").fill("r=16")
    assert texts(page, "#overview tbody th") == ["glue/rte"]
    page.get_by_label("Search").fill("")
    page.get_by_label("Seeds, at least").fill("5")
    assert texts(page, "#overview tbody th") == ["uuid"]


def test_a_permalink_opens_the_same_view(visit):
    page = visit("overview", "task=glue%2Frte&budget=lora%3Ar%3D16&sort=-seeds")
    assert texts(page, "#overview tbody th") == ["glue/rte"]
    assert page.locator("[data-filter=budget]").input_value() == "lora:r=16"
    assert page.locator("#overview th[aria-sort=descending]").inner_text().startswith("Seeds")
    page.locator("#overview tbody a").click()
    page.wait_for_url("**/boards/glue*")
    assert "lora:r=16" in page.title()


def press(page, head):
    head.click()
    page.wait_for_timeout(200)  # sorting comes after the click


def column(page, key):
    cells = page.locator(f"#scores tbody:not(.reference) .c-{key}")
    return cells.evaluate_all("cells => cells.map(cell => cell.dataset.order)")


def test_a_head_sorts_both_ways_says_so_and_rows_without_a_value_stay_last(visit):
    page = visit("board")
    head = page.locator("#scores thead th.c-score")
    press(page, head)
    values = column(page, "score")
    scores = [float(value) for value in values if value]
    assert scores == sorted(scores)
    assert values[-1] == ""
    assert head.get_attribute("aria-sort") == "ascending"
    assert "sort=score" in page.url
    press(page, head)
    assert [float(value) for value in column(page, "score") if value] == sorted(scores, reverse=True)
    assert column(page, "score")[-1] == ""
    assert "full" in page.locator("#scores tr").last.inner_text()  # references stay at the foot


def test_a_head_sorts_by_keyboard(visit):
    page = visit("board")
    page.locator("#scores thead th.c-method [role=button], #scores thead th.c-method button").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_timeout(200)
    names = column(page, "method")
    assert names == sorted(names)


def test_columns_can_be_chosen_and_the_address_keeps_the_choice(visit):
    page = visit("board")
    page.get_by_text("Columns", exact=True).click()
    page.get_by_label("Learning rate", exact=True).uncheck()
    assert not page.locator("#scores thead th.c-learning_rate").is_visible()
    again = visit("board", page.url.partition("#")[2])
    assert not again.locator("#scores thead th.c-learning_rate").is_visible()
    assert again.locator("#scores thead th.c-parameters").is_visible()


def test_two_methods_are_compared_seed_by_seed_and_item_by_item(visit):
    page = visit("items")
    page.locator("#compare-first").select_option("lora")
    page.locator("#compare-second").select_option("dora")
    text = page.locator("#compare-result").inner_text()
    assert "dora is better, on new items of the same kind." in text
    assert "lora minus dora" in text
    assert len(texts(page, "#compare-result table:last-of-type tbody tr")) >= 4
    assert "this=lora&against=dora" in page.url
    page.locator("#compare-items").click()
    page.get_by_text("Of 60 items").wait_for()
    page.locator("#compare-second").select_option("mora")
    assert "Not told apart" in page.locator("#compare-result").inner_text()


def test_a_comparison_opens_with_the_pair_that_a_reader_would_ask_for_and_works_by_keyboard(visit):
    page = visit("items")
    assert "Shown first: the best score against" in page.locator("#compare").inner_text()
    assert page.locator("#compare-first").input_value() == "dora"  # the best score
    assert page.locator("#compare-second").input_value() == "lora"
    page.locator("#compare-first").focus()
    page.keyboard.type("mora")
    page.keyboard.press("Tab")
    page.keyboard.type("dora")
    assert "mora minus dora" in page.locator("#compare-result").inner_text()
    for _ in range(8):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "compare-items":
            break
    page.keyboard.press("Enter")
    page.get_by_text("Of 60 items").wait_for()


def test_a_permalink_with_one_method_never_compares_it_with_itself(visit):
    page = visit("items", "this=lora")
    assert page.locator("#compare-second").input_value() != "lora"


def test_a_comparisons_permalink_opens_it(visit):
    page = visit("items", "this=mora&against=dora")
    assert "mora minus dora" in page.locator("#compare-result").inner_text()


def test_figures_are_drawn_and_saved(visit, tmp_path):
    page = visit("board")
    assert page.locator(".canvas svg[role=img]").count() >= 3
    figure = page.locator("[data-figure=pareto]")
    figure.locator("select[data-control=x]").select_option("bytes")
    assert "Peak memory" in figure.locator("svg").first.get_attribute("aria-label")
    for kind, start in (("SVG", b"<svg"), ("PNG", b"\x89PNG")):
        with page.expect_download() as waiting:
            figure.get_by_role("button", name=f"as {kind}").click()
        waiting.value.save_as(tmp_path / kind)
        assert (tmp_path / kind).read_bytes().startswith(start)
    assert b"var(" not in (tmp_path / "SVG").read_bytes()  # it needs nothing of the page


def test_what_lies_far_off_stands_at_the_edge_of_a_figure_with_its_value(
    visit, make_record, make_reference, make_files, site
):
    def loss(value):
        return {"main_metric": "loss", "higher_is_better": False, "metrics": {"loss": value, "accuracy": 0.5}}

    records = [
        make_record(name, seed, **loss(2 + place / 10 + seed / 100))
        for place, name in enumerate("abcd")
        for seed in range(3)
    ]
    records += [make_reference(seed, **loss(40.0 + seed)) for seed in range(3)]
    (board,) = [name for name in make_files(records, site / "far") if re.fullmatch("boards/.*html", name)]
    texts = visit(f"far/{board}").locator("[data-figure=metrics] svg text").all_text_contents()
    assert "full ↑ 41" in texts
    ticks = [float(text) for text in texts if re.fullmatch(r"[0-9.]+", text)]
    assert 40 not in ticks


def test_guessing_is_a_line_in_the_figures_of_scores_and_no_tick_lies_where_the_metric_has_no_values(
    visit, make_record, make_reference, make_files, site
):
    details = {"accuracy": {"title": "Accuracy", "unit": "fraction", "higher_is_better": True, "chance": 0.1}}
    scores = {"a": 0.02, "b": 0.1, "c": 0.2, "d": 0.9}
    records = [
        make_record(name, seed, score + seed / 100, metric_details=details)
        for name, score in scores.items()
        for seed in range(3)
    ]
    (board,) = [name for name in make_files(records, site / "guess") if re.fullmatch("boards/.*html", name)]
    page = visit(f"guess/{board}")
    for kind in ("pareto", "metrics"):
        texts = page.locator(f"[data-figure={kind}] svg").first.locator("text").all_text_contents()
        assert "guessing" in texts
        ticks = [float(text.replace("−", "-")) for text in texts if re.fullmatch(r"[−0-9.]+", text)]
        assert min(ticks) >= 0
    assert page.locator("#scores .bar .chance").count() == 4
    assert "guessing, 0.1" in page.locator("#scores-legend").inner_text()


def test_no_two_names_beside_curves_cover_each_other_however_wide_the_bands_are(visit, make_record, make_files, site):
    def curve(place, seed):
        starts = 0.9 * seed + place / 1000  # the bands are far wider than the curves are apart
        return [
            {"step": step, "metrics": {"accuracy": value}} for step, value in ((1, starts), (2, 0.9 + place / 1000))
        ]

    names = ("aa", "bb", "cc", "dd", "ee", "ff")
    records = [
        make_record(name, seed, 0.5 + seed / 100, history=curve(place, seed))
        for place, name in enumerate(names)
        for seed in range(2)
    ]
    (board,) = [name for name in make_files(records, site / "bands") if re.fullmatch("boards/.*html", name)]
    texts = visit(f"bands/{board}").locator("[data-figure=curves] svg text")
    places = sorted(each.bounding_box()["y"] for each in texts.all() if each.text_content() in names)
    assert len(places) == 6
    assert min(after - before for before, after in pairwise(places)) > 9


def test_no_two_methods_have_curves_that_look_alike(visit, make_record, make_reference, make_files, site):
    records = [make_record(f"m{number}", seed) for number in range(9) for seed in range(2)]
    found = make_files([*records, *(make_reference(seed) for seed in range(2))], site / "alike")
    (board,) = [name for name in found if re.fullmatch("boards/.*html", name)]
    curves = visit(f"alike/{board}").locator("[data-figure=curves] svg g[fill=none] > path[stroke^='var(--series']")
    curves.first.wait_for(state="attached")
    look = "each => `${each.getAttribute('stroke')} ${each.parentNode.getAttribute('stroke-dasharray')}`"
    looks = curves.evaluate_all(f"found => found.map({look})")
    assert len(set(looks)) == len(looks) == 10
    assert sum("series-6" in each for each in looks) == 1, "grey is the reference's alone"


def test_across_budgets_each_line_has_its_name_once_near_its_end(visit, make_record, make_files, site):
    names = ("aa", "bb", "cc", "dd", "ee", "ff", "gg", "hh")
    records = [
        make_record(
            name,
            seed,
            0.4 + place / 30 + size / 1e7 + seed / 100,
            trial={"budget": f"{size}", "budget_parameters": size, "adapter_parameters": size},
        )
        for place, name in enumerate(names)
        for size in (100_000, 200_000, 400_000)
        for seed in range(2)
    ]
    make_files(records, site / "across")
    figure = visit(f"across/{first(site / 'across', 'tasks/*.html')}").locator("[data-figure=budgets] svg")
    figure.wait_for()
    found = [(each.text_content(), each.bounding_box()["y"]) for each in figure.locator("text").all()]
    places = sorted((y, name) for name, y in found if name in names)
    assert [name for _, name in places] == list(reversed(names)), "highest first, as their lines are"


def test_a_board_of_very_many_methods_has_a_page_of_bounded_size_and_still_compares_any_two(
    visit, make_record, make_files, site
):
    records = [
        make_record(f"m{number:02}", seed, 0.2 + number / 100 + seed / 50) for number in range(46) for seed in (0, 1)
    ]
    found = make_files(records, site / "many")
    (board,) = [name for name in found if re.fullmatch("boards/.*html", name)]
    assert len(json.loads(found[board.replace(".html", ".json")])["pairs"]) == 1035
    page = visit(f"many/{board}")
    assert page.locator("details", has_text="The pairs with m45, of 1,035").locator("tbody tr").count() == 45
    assert "m45 minus" in page.locator("#compare-result").inner_text()
    page.locator("#compare-first").select_option("m01")
    page.locator("#compare-second").select_option("m02")
    page.get_by_text("m01 minus m02").wait_for()


@pytest.mark.parametrize(("name", "start"), [("CSV", '"task"'), ("JSON", "{"), ("Markdown", "## uuid"), ("LaTeX", "%")])
def test_tables_are_downloaded_where_one_looks(visit, site, places, name, start):
    page = visit("board")
    link = page.locator("main .toolbar").get_by_role("link", name=name)
    text = (site / "boards" / link.get_attribute("href")).read_text(encoding="utf-8")
    assert text.startswith(start)
    assert link.get_attribute("download") == ""
    if name == "JSON":
        assert {each["method"] for each in json.loads(text)["rows"]} >= {"dora", "full", "vera"}


def test_figures_across_budgets_join_a_methods_sizes(visit):
    page = visit("task")
    figure = page.locator("[data-figure=budgets]")
    figure.locator("select[data-control=x]").select_option("settings.rank")
    assert "Setting rank" in figure.locator("svg").first.get_attribute("aria-label")


def test_a_trial_says_what_it_was_and_how_to_make_it_again(visit):
    page = visit("trial")
    text = page.locator("main").inner_text()
    for part in (
        "harness run --methods oft",
        "--task uuid",
        "Everything that decides the result",
        "hardware.device",
        "loss became NaN",
    ):
        assert part in text, part
    page.get_by_role("link", name="the method oft").click()
    page.wait_for_url("**/methods/oft*")


def test_a_trial_of_a_search_says_that_its_scores_are_no_results(visit, example_records):
    tuned = next(record for record in example_records if record.trial.purpose == "tune")
    text = visit(f"trial.html#{tuned.trial_id}").locator("main").inner_text()
    assert "are not results" in text
    assert "Final metrics, of validation data" in text


def test_an_address_without_a_trial_is_said(visit, places):
    unknown = f"{places['trial'].partition('#')[2][:2]}{'0' * 14}"
    assert f"There is no trial {unknown}" in visit(f"trial.html#{unknown}").locator("#trial").inner_text()
    assert "must end in #" in visit("trial.html").locator("#trial").inner_text()


def test_heads_stay_in_sight_while_a_long_table_scrolls(visit):
    page = visit("items")
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    box = page.locator(".scroll").last
    box.evaluate("each => { each.style.maxHeight = '160px'; each.scrollTop = 200; }")
    top = box.bounding_box()["y"]
    assert box.locator("thead th").first.bounding_box()["y"] == pytest.approx(top, abs=3)


@pytest.mark.parametrize("width", [980, 1047])  # a landscape page of Letter and of A4, without 10 mm at the sides
def test_paper_holds_the_main_table_and_the_reasons(visit, width):
    page = visit("board", media="print")
    page.set_viewport_size({"width": width, "height": 700})
    right = page.locator("table.main").evaluate("table => table.getBoundingClientRect().right")
    assert right <= width
    assert page.get_by_text("no probe: --no-probe was given (lora)").is_visible()
    assert not page.get_by_role("button", name="SVG").first.is_visible()


def test_the_first_paint_comes_within_a_second(visit):
    page = visit("board")
    paint = page.evaluate("performance.getEntriesByType('paint')[0].startTime")
    assert paint < 1000


def test_an_open_page_says_how_far_a_sweep_is(browser, make_record, tmp_path):
    folder, records = tmp_path / "results", [make_record("lora", 0), make_record("mora", 0, state=State.FAILED)]
    folder.mkdir()

    def write():
        for record in records:
            (folder / f"{record.trial_id}.json").write_text(record.dumps())

    def build():
        view = view_of(load([str(folder)]), None)
        write_site(view, tmp_path / "site", live=True)
        return view.record_count, [text for board in view.boards for text in board.failures]

    write()
    site = Site([str(folder)], tmp_path / "site", build)
    site.renew()
    trial = make_record("dora", 1).trial
    (folder / "live").mkdir()
    points = {"train/loss": [[10, 2.0], [20, 1.5]]}
    running = {"label": trial.label, "step": 20, "steps": 500, "points": points}
    (folder / "live" / "here-1.json").write_text(json.dumps({"at": time.time(), "running": [running]}))
    listening = server(site, 0)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    page = browser.new_page()
    problems = []
    page.on("console", lambda message: problems.append(message.text))
    try:
        page.goto(f"http://127.0.0.1:{listening.server_port}/")
        page.get_by_text("2 records, 1 of them did not finish; 1 trials training now.").wait_for()
        assert "20 of 500" in page.locator("#progress").inner_text()
        assert page.locator("#progress svg[role=img]").count() == 1
        records.append(make_record("dora", 0))
        write()
        site.renew()
        page.locator("#progress-newer").wait_for()
        page.locator("#progress-newer").click()
        page.locator("#overview .below", has_text="dora").wait_for()
        assert problems == []
    finally:
        page.close()
        listening.shutdown()
        listening.server_close()
        thread.join()
