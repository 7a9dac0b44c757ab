"""The documentation as a site: it asks no other host for anything, and its search finds what people type."""

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytest.importorskip("mkdocs")
pytest.importorskip("latex2mathml")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The built site, and where it is served."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(REPOSITORY)}
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--headless", "--no-sandbox"])
        yield browser
        browser.close()


def test_no_script_knows_the_address_of_another_host_that_it_might_load_from(site: tuple[Path, str]) -> None:
    loading = re.compile(r"https://(?:unpkg\.com|cdn\.[\w.]+|api\.github\.com|fonts\.\w+\.com)")
    for script in (site[0] / "assets").rglob("*.js"):
        assert not loading.findall(script.read_text(encoding="utf-8")), script.name


@pytest.mark.parametrize(
    ("query", "page"), [("export onnx", "inference"), ("export_onnx", "inference"), ("several machines", "cluster")]
)
def test_search_finds_the_page_without_asking_another_host(
    site: tuple[Path, str], browser: Any, query: str, page: str
) -> None:
    _, address = site
    tab = browser.new_page()
    foreign: list[str] = []
    tab.on("request", lambda request: None if request.url.startswith(address) else foreign.append(request.url))
    tab.goto(address)
    tab.locator("input[name=query]").press_sequentially(query)  # the search listens to keys
    tab.locator(".md-search-result__item a").first.wait_for(state="attached")
    found = tab.locator(".md-search-result__item a").evaluate_all("all => all.slice(0, 8).map(link => link.href)")
    assert any(f"/{page}/" in link for link in found), found
    tab.close()
    assert [url for url in foreign if not url.startswith(("data:", "blob:"))] == []


def test_api_pages_show_the_fields_of_settings_with_defaults(site: tuple[Path, str]) -> None:
    text = (site[0] / "api" / "index.html").read_text(encoding="utf-8")
    for name, key, default in (("Budget", "min_keep_ratio", "0.05"), ("Recipe", "weight_decay", "0.05")):
        of_class = text[text.index(f'id="lpvit{name.lower()}"') :]
        row = re.search(rf"<code>{key}</code>.*?</tr>", of_class, re.DOTALL)
        assert row is not None
        assert default in row[0]


def test_formulas_are_drawn_without_a_script(site: tuple[Path, str], browser: Any) -> None:
    for page in site[0].rglob("*.html"):
        text = re.sub(r"<(code|pre|script)\b.*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.search(r"\$[^$<\s][^$<]*\$|:math:|\.\. math|class=\"arithmatex|\\[(\[]", text), page
    tab = browser.new_page(java_script_enabled=False)
    tab.goto(f"{site[1]}/method/")
    formulas = (REPOSITORY / "docs/method.md").read_text().count("$") // 2
    assert tab.locator("math").count() == formulas > 100
    fraction = tab.locator("math mfrac").first
    parts = [fraction.locator("> *").nth(number).bounding_box() for number in range(2)]
    assert parts[0]["y"] + parts[0]["height"] <= parts[1]["y"] + 1  # one above the other
    tab.close()
