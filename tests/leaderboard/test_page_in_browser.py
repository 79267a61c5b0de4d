"""The page in a real browser. Skipped, and saying so, where there is none."""

import shutil

import pytest

from harness_leaderboard.build import build

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


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
def address(example_records, make_record, tmp_path_factory):
    long_name = make_record("a-method-with-a-very-long-name-" * 4, 0, 0.4)
    return build([*example_records, long_name], tmp_path_factory.mktemp("site")).as_uri()


@pytest.fixture
def page(browser, address):
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.problems, opened.requests = [], []
    opened.on("console", lambda message: opened.problems.append(message.text))
    opened.on("pageerror", lambda error: opened.problems.append(str(error)))
    opened.on("request", lambda request: opened.requests.append(request.url))
    opened.goto(address)
    yield opened
    opened.close()


def test_it_loads_without_errors_or_requests(page, address):
    assert page.title() == "Fine-tuning methods at equal budgets"
    assert page.problems == []
    assert [url for url in page.requests if url != address and not url.startswith("data:")] == []


def column(page, number):
    cells = page.locator("#board-2 table.main tbody").first.locator(f"tr > :nth-child({number})")
    return cells.evaluate_all("cells => cells.map(cell => cell.dataset.sort)")


def test_a_click_on_a_head_sorts_both_ways_and_says_so(page):
    head = page.locator("#board-2 table.main thead th").nth(2)
    head.get_by_role("button").click()
    values = column(page, 3)
    scores = [float(value) for value in values if value]
    assert scores == sorted(scores)
    assert values[-1] == ""  # the method without a score stays last
    assert head.get_attribute("aria-sort") == "ascending"
    head.get_by_role("button").click()
    values = column(page, 3)
    assert [float(value) for value in values if value] == sorted(scores, reverse=True)
    assert values[-1] == ""
    assert head.get_attribute("aria-sort") == "descending"
    assert page.locator("#board-2 thead th[aria-sort=ascending]").count() == 0


def test_names_sort_as_text_and_references_stay_at_the_foot(page):
    page.locator("#board-2 table.main thead th").nth(1).get_by_role("button").click()
    names = column(page, 2)
    assert names == sorted(names)
    last = page.locator("#board-2 table.main tr").last
    assert "full" in last.inner_text()
    assert page.problems == []


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_never_scrolls_sideways(page, width):
    page.set_viewport_size({"width": width, "height": 844})
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width == 1280:  # and the main table fits its card
        over = page.locator("table.main").evaluate_all(
            "tables => Math.max(...tables.map(each => each.offsetWidth - each.parentElement.clientWidth))"
        )
        assert over <= 0


def test_heads_stay_in_sight(page):
    page.locator("#board-2 table.main tbody tr").nth(5).evaluate(
        "row => window.scrollTo({top: row.getBoundingClientRect().top + scrollY - 60, behavior: 'instant'})"
    )
    heads = page.locator("#board-2 table.main thead th")
    assert heads.first.bounding_box()["y"] == pytest.approx(0, abs=2)


def test_dark_and_light_differ_and_both_can_be_read(page):
    def contrast():
        return page.evaluate(
            """() => {
              const light = (color) => {
                const parts = color.match(/[\\d.]+/g).slice(0, 3).map(Number).map(v => v / 255)
                  .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
              };
              const style = getComputedStyle(document.body);
              const quiet = getComputedStyle(document.querySelector(".below")).color;
              const [ground, ink, soft] = [style.backgroundColor, style.color, quiet].map(light);
              const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
              return [ground, ratio(ground, ink), ratio(ground, soft)];
            }"""
        )

    page.emulate_media(color_scheme="light")
    light = contrast()
    page.emulate_media(color_scheme="dark")
    dark = contrast()
    assert light[0] > 0.8 > 0.2 > dark[0]
    for _, ink, soft in (light, dark):
        assert ink > 7  # WCAG 2.2 level AAA
        assert soft > 4.5  # level AA


@pytest.mark.parametrize("width", [1280, 390])
def test_a_name_is_not_broken_in_its_middle(browser, make_record, tmp_path, width):
    address = build([make_record(name, seed) for name in ("method_049", "lora") for seed in (0, 1)], tmp_path).as_uri()
    page = browser.new_page(viewport={"width": width, "height": 844})
    page.goto(address)
    tall, low = page.locator("table.main tbody th").evaluate_all(
        "heads => { const range = document.createRange(); return heads.map(each => { "
        "range.selectNodeContents(each); return range.getClientRects().length; }).sort((a, b) => b - a); }"
    )
    page.close()
    assert (tall, low) == (1, 1)  # each name is one line


@pytest.mark.parametrize("width", [980, 1047])  # a landscape page of Letter and of A4, without 10 mm at the sides
def test_paper_holds_the_whole_table_and_the_reasons(page, width):
    page.emulate_media(media="print")
    page.set_viewport_size({"width": width, "height": 700})
    right = page.locator("table.main").evaluate_all(
        "tables => Math.max(...tables.map(each => each.getBoundingClientRect().right))"
    )
    assert right <= width
    assert page.get_by_text("Step, solo: no probe: --no-probe was given (lora)").is_visible()
    pages = page.pdf(prefer_css_page_size=True)
    width_points, height_points = map(float, pages.split(b"/MediaBox [0 0 ")[1].split(b"]")[0].split())
    assert width_points > height_points
