"""The documentation keeps to the terms of docs/glossary.md."""

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY

GLOSSARY = REPOSITORY / "docs" / "glossary.md"
TEXTS = ["README.md", "CONTRIBUTING.md", "benchmarks", "config", "docs", "lpvit", "profiles", "workflow"]
GENERATED = ["benchmarks/results"]
SUFFIXES = {".md", ".py", ".rst", ".smk", ".yaml"}


def files() -> list[Path]:
    left_out = [REPOSITORY / name for name in GENERATED]
    found = (path for name in TEXTS for path in [REPOSITORY / name, *(REPOSITORY / name).rglob("*")])
    return sorted(
        path
        for path in found
        if path.suffix in SUFFIXES and path != GLOSSARY and not any(map(path.is_relative_to, left_out))
    )


def to_avoid() -> re.Pattern[str]:
    """The first column of the glossary's last table as one expression."""
    table = GLOSSARY.read_text().partition("## Words to avoid")[2]
    cells = re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)
    phrases = [phrase for cell in cells if cell not in ("avoid", "---") for phrase in cell.split(", ")]
    spaced = "|".join(phrases).replace(" ", r"\s+")
    return re.compile(rf"\b({spaced})\b", re.IGNORECASE)


def prose(file: Path) -> str:
    """What a file says to people: no names, no code."""
    if file.suffix == ".py":
        return "\n".join([*comments(file), *strings(ast.parse(file.read_text()))])
    text = file.read_text()
    if file.suffix == ".yaml":
        return "\n".join(re.findall(r"(?:^|\s)#(.*)$", text, re.MULTILINE))
    if file.suffix == ".smk":
        return "\n".join([*re.findall(r"#(.*)$", text, re.MULTILINE), *re.findall(r'"""(.*?)"""', text, re.DOTALL)])
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`+[^`]*`+|\]\([^)]*\)|<!--.*?-->", "", text)


def comments(file: Path) -> Iterator[str]:
    with tokenize.open(file) as opened:
        for token in tokenize.generate_tokens(opened.readline):
            if token.type == tokenize.COMMENT:
                yield re.sub(r"`+[^`]*`+", "", token.string)


def strings(tree: ast.Module) -> Iterator[str]:
    """Docstrings and messages: string literals with a space in them, without code and keys (``key: text``)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield re.sub(r"`+[^`]*`+|^\s*[\w.]+:", "", node.value, flags=re.MULTILINE)


@pytest.mark.parametrize("file", files(), ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_a_text_uses_no_word_that_the_glossary_avoids(file: Path) -> None:
    found = [match.group() for match in to_avoid().finditer(prose(file))]
    assert not found, f"{file.relative_to(REPOSITORY)}: {found}; see docs/glossary.md"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.md", "The paper's Arm of it.\n\n```sh\nlpvit --arms\n```\n"),
        ("a.py", 'def f():\n    """Weights are fitted\n    anew."""\n'),
        ("a.py", "x = 1  # the arm\n"),
        ("a.yaml", "arms: [dense]  # every arm\n"),
        ("a.smk", 'rule a:\n    """An arm."""\n'),
        ("a.rst", "An arm"),
    ],
)
def test_a_word_to_avoid_is_found_once_in_prose_and_not_in_code(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert len(to_avoid().findall(prose(tmp_path / name))) == 1
