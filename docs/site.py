"""Adds files outside `docs/` (README, CONTRIBUTING, benchmarks) to the site, rewrites their links, draws formulas."""

import html
import os
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {  # in the repository -> on the site
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/tried.md": "benchmarks/tried.md",
    **{name: name for name in sorted(str(file.relative_to(ROOT)) for file in ROOT.glob("benchmarks/notes/*.md"))},
    "config/README.md": "configs.md",
}
FILES = ["CITATION.cff", "LICENSE", *(str(file.relative_to(ROOT)) for file in ROOT.glob("benchmarks/results/*"))]
_OTHER_HOSTS = re.compile(r"https://(?:unpkg\.com|api\.github\.com|gitlab\.com|fonts\.[a-z]+\.com)/[^\"'`?]*")
_LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)|^(\[[^]]+\]: )(?!https?:)(\S+)$", re.MULTILINE)

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Adds the files outside the documentation's folder."""
    for source, target in [*PAGES.items(), *((file, file) for file in FILES)]:
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Rewrites links between files of the repository to links between pages of the site."""
    source = Path(str(page.file.abs_src_path)).relative_to(ROOT)
    here = Path(_on_site(str(source))).parent

    def replaced(found: re.Match[str]) -> str:
        target, anchor = found[1], found[2] or ""
        if target is None:
            return found[0]
        return f"]({os.path.relpath(_on_site(os.path.normpath(source.parent / target)), here)}{anchor})"

    return _LINK.sub(replaced, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Replaces formulas in TeX by MathML, which browsers draw without a script."""

    def drawn(found: re.Match[str]) -> str:
        return convert(html.unescape(found[3]).strip(), display="block" if found[2] == "[" else "inline")

    return _FORMULA.sub(drawn, content)


def on_post_build(config: Any) -> None:
    """Removes the addresses of other hosts that the theme's scripts would load more scripts from."""
    for script in Path(config["site_dir"], "assets", "javascripts").rglob("*.js*"):  # and maps
        text = script.read_text(encoding="utf-8")
        script.write_text(_OTHER_HOSTS.sub("", text), encoding="utf-8")


def _on_site(file: str) -> str:
    if file == "docs/README.md":
        return "index.md"
    return PAGES.get(file, file.removeprefix("docs/"))
