"""Lets the site show texts where they lie in the repository: each has one place, and its links lead there and here."""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {  # in the repository -> on the site
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "config/README.md": "configs.md",
}
FILES = ["CITATION.cff", "LICENSE", *(str(file.relative_to(ROOT)) for file in ROOT.glob("benchmarks/results/*"))]
_LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)|^(\[[^]]+\]: )(?!https?:)(\S+)$", re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Adds what lies outside the documentation's folder."""
    for source, target in [*PAGES.items(), *((file, file) for file in FILES)]:
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Makes links of the repository those of the site."""
    source = Path(str(page.file.abs_src_path)).relative_to(ROOT)

    def replaced(found: re.Match[str]) -> str:
        target, anchor = found[1], found[2] or ""
        if target is None:
            return found[0]
        return f"]({_on_site(os.path.normpath(source.parent / target))}{anchor})"

    return _LINK.sub(replaced, markdown)


def _on_site(file: str) -> str:
    if file == "docs/README.md":
        return "index.md"
    return PAGES.get(file, file.removeprefix("docs/"))
