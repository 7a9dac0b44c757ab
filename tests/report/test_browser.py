"""The reports as people meet them: every page opened and every control clicked, in a real browser, without an error."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import Run, Workflow

from lpvit.report.comparison import Comparison, render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
SIZES = {"phone": (390, 844), "desktop": (1280, 800)}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(params=SIZES)
def page(request: pytest.FixtureRequest, browser: Any) -> Iterator[Any]:
    """A page of a phone or a desktop; whatever the browser complains of or asks the net for fails the test."""
    width, height = SIZES[request.param]
    page = browser.new_page(viewport={"width": width, "height": height})
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: complaints.append(request.url[:80]) if request.url.startswith("http") else None)
    yield page
    page.close()
    assert complaints == []


@pytest.fixture(scope="module")
def reports(finished: tuple[Workflow, Run], tiny_config: dict[str, Any]) -> dict[str, Path]:
    workflow, _ = finished
    run = workflow.run(tiny_config, "--report", "report.html")
    assert run.code == 0, run.output
    return {"page": workflow.folder / "results/report/tiny/index.html", "snakemake": workflow.folder / "report.html"}


def test_every_control_of_the_page_works(reports: dict[str, Path], page: Any) -> None:
    page.goto(reports["page"].as_uri())
    page.wait_for_selector(".chart .point")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing but tables scrolls sideways
    for option in page.locator("#axis option").evaluate_all("all => all.map(option => option.value)"):
        page.select_option("#axis", option)
        assert page.locator(".chart .point").count() >= 2
    for control in page.locator("input[type=radio]").all():
        control.click()
    for control in page.locator("input[type=checkbox]").all():
        control.uncheck()
        control.check()
    for control in page.locator("summary").all():
        control.click()
    for link in page.locator("nav a, main a[href^='#']").all():
        link.click()
    for button in page.locator(".chart .modebar-btn:visible").all():
        button.click()
    for panels in page.locator(".panels").all():  # drawn when they come into view
        panels.scroll_into_view_if_needed()
        panels.locator(".trace").first.wait_for(state="attached")
    for image in page.locator("img").all():
        image.scroll_into_view_if_needed()
        page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=image.element_handle())


def test_a_print_has_every_figure(reports: dict[str, Path], page: Any) -> None:
    page.goto(reports["page"].as_uri())
    page.wait_for_selector(".chart .point")
    assert page.locator(".panels:not(.js-plotly-plot)").count() > 0  # below the screen: not drawn yet
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".panels:not(.js-plotly-plot)").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")


def test_the_first_table_fits_on_printed_paper(reports: dict[str, Path], page: Any) -> None:
    page.set_viewport_size({"width": 718, "height": 1000})  # A4 without Chromium's margins
    page.goto(reports["page"].as_uri())
    page.emulate_media(media="print")
    assert page.locator(".results").evaluate("e => e.getBoundingClientRect().right") <= 718


def test_long_names_of_two_models_do_not_widen_their_page(tmp_path: Path, page: Any) -> None:
    rows = pd.DataFrame({"path": ["1.png"], "label": [""], "dense": ["cat"], "compressed": ["cat"]})
    rows = rows.assign(dense_share=0.9, compressed_share=0.8)
    spoilt = pd.DataFrame({"how": ["as they are"], "images": [1], "dense": [None], "compressed": [None], "alike": [1]})
    name = f"results/{'a_long_name/' * 8}finetuned.pt"
    (tmp_path / "compare.html").write_text(render(Comparison((name, name), "photos", rows, spoilt, {})))
    page.goto((tmp_path / "compare.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


def test_what_scrolls_sideways_says_so(reports: dict[str, Path], page: Any) -> None:
    page.goto(reports["page"].as_uri())
    page.wait_for_selector(".chart .point")
    page.locator("summary").first.click()
    table = page.locator("#results .scroll")
    scrolls = table.evaluate("e => e.scrollWidth > e.clientWidth + 1")
    assert page.locator("#results .more").is_visible() == scrolls
    assert scrolls or page.viewport_size["width"] > 390


def test_every_heading_explains_itself(reports: dict[str, Path], page: Any) -> None:
    page.goto(reports["page"].as_uri())
    titles = page.locator(".results thead button").evaluate_all("all => all.map(button => button.title)")
    assert all(len(title) > 20 for title in titles)


def test_an_experiment_that_is_not_chosen_leaves_chart_and_table(reports: dict[str, Path], page: Any) -> None:
    page.goto(reports["page"].as_uri())
    page.wait_for_selector(".chart .point")
    points, rows = page.locator(".chart .point"), page.locator(".results tbody tr:visible")
    assert (points.count(), rows.count()) == (2, 2)
    page.locator("input[type=checkbox]").uncheck()
    assert (points.count(), rows.count()) == (1, 1)  # the dense model stays


def test_a_point_tells_its_model_its_accuracy_with_interval_and_its_cost(reports: dict[str, Path], page: Any) -> None:
    page.goto(reports["page"].as_uri())
    page.wait_for_selector(".chart .point")
    page.locator(".chart").scroll_into_view_if_needed()
    for point in page.locator(".chart .point").all():
        box = point.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        told = page.wait_for_selector(".chart .hovertext").text_content()
        assert re.search(r"(main|vit, dense)\d+\.\d\d % \(\d+\.\d to \d+\.\d\)\d.*k$", told), told
        page.mouse.move(0, 0)


def test_the_keyboard_sorts_by_every_column_and_dense_stays_on_top(reports: dict[str, Path], page: Any) -> None:
    page.goto(reports["page"].as_uri())
    page.wait_for_selector(".chart .point")
    add = """row => { const copy = row.cloneNode(true); copy.cells[0].dataset.value = "other";
                      for (const cell of [...copy.cells].slice(1))
                          cell.dataset.value = (Number(cell.dataset.value) || 0) + 1;
                      row.before(copy); }"""
    page.locator(".sortable tr").first.evaluate(add)
    column = "(n) => [...document.querySelectorAll('.sortable tr')].map(row => row.cells[n].dataset.value)"
    for index, button in enumerate(page.locator(".results thead button").all()):
        for direction in ("descending", "ascending"):
            button.focus()
            page.keyboard.press("Enter")
            assert page.locator(".results thead th").nth(index).get_attribute("aria-sort") == direction
            values = page.evaluate(column, index)
            text = page.locator(".results thead th").nth(index).get_attribute("class") == "left" or not index
            values = values if text else [float(value) for value in values]
            assert values == sorted(values, reverse=direction == "descending")
        assert page.locator(".results tbody tr").first.locator("th").text_content().startswith("dense")


def test_everything_to_look_at_and_to_press_has_a_name_and_text_has_contrast(
    reports: dict[str, Path], page: Any
) -> None:
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.goto(reports["page"].as_uri())
        page.wait_for_selector(".chart .point")
        nameless = """() => [...document.querySelectorAll('main button, main a, img, input, select, [role]')]
            .filter(e => !e.closest('.modebar'))
            .filter(e => !(e.alt || e.ariaLabel || e.textContent.trim() || e.labels?.[0]?.textContent.trim()))
            .map(e => e.outerHTML.slice(0, 80))"""
        assert page.evaluate(nameless) == []
        faint = """() => {
            const light = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
                .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
                .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
            const own = e => getComputedStyle(e).backgroundColor;
            const ground = e => own(e).endsWith(', 0)') ? ground(e.parentElement) : own(e);
            return [...document.querySelectorAll('h1, h2, h3, p, th, td, small, a, dt, dd, label, summary, button')]
                .filter(e => e.offsetParent && e.textContent.trim())
                .map(e => [light(getComputedStyle(e).color), light(ground(e)), e.outerHTML.slice(0, 80)])
                .filter(([a, b]) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5);
        }"""
        assert page.evaluate(faint) == []


def test_every_category_of_the_report_of_snakemake_opens_and_begins_with_the_page(
    reports: dict[str, Path], page: Any
) -> None:
    page.goto(reports["snakemake"].as_uri())
    page.wait_for_selector("text=Statistics")
    categories = page.evaluate("Object.keys(categories).sort((a, b) => a.localeCompare(b))")
    assert categories[0] == "At a glance"
    opened = 0
    for category in categories:
        for subcategory in page.evaluate("category => Object.keys(categories[category])", category):
            page.evaluate("app.setView({navbarMode: 'menu'})")
            page.get_by_role("link", name=category, exact=True).click()
            if (folder := page.get_by_role("link", name=subcategory, exact=True)).count():
                folder.click()
            rows = page.locator("tbody tr")
            rows.first.wait_for()
            for row in rows.all():
                assert row.locator("td").first.text_content()
                row.locator("a").first.click()
                shown = page.locator("img, iframe").last
                shown.wait_for(state="attached")  # Snakemake leaves no room for it on a phone
                opened += 1
                if category == categories[0]:
                    frame = page.frame_locator("iframe")
                    frame.locator(".results button").first.click()
                    assert frame.locator("[aria-sort=descending]").count() == 1
    assert opened == page.evaluate("Object.keys(results).length")
