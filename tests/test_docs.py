"""Documentation that keeps its promises: links that lead somewhere, names that exist, and a README that stays short."""

import importlib
import re
import runpy
import shlex
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import REPOSITORY
from families import DOCUMENT, tables
from PIL import Image

import lpvit
from lpvit.cli.main import main
from lpvit.config.reference import update

DOCUMENTS = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "config/README.md")),
    *sorted((REPOSITORY / "benchmarks").glob("*.md")),
    *sorted((REPOSITORY / "benchmarks" / "notes").glob("*.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
]


def anchors(file: Path) -> set[str]:
    """What a heading is called in a link, as GitHub makes it."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_links_lead_somewhere(file: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", file.read_text()):
        if target.startswith(("http", "mailto")):
            continue
        path, _, anchor = target.partition("#")
        found = file.parent / path if path else file
        assert found.exists(), f"{target} in {file.name}"
        assert not anchor or anchor in anchors(found), f"{target} in {file.name}"


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_names_of_the_package_exist(file: Path) -> None:
    for name in set(re.findall(r"`(lpvit(?:\.\w+)+)", file.read_text())):
        if name.rpartition(".")[2] in ("parquet", "pt", "yaml"):
            continue
        assert resolves(name), f"{name} in {file.name}"


def resolves(name: str) -> bool:
    place, _, attribute = name.rpartition(".")
    try:
        importlib.import_module(name)
    except ImportError:
        return bool(place) and hasattr(importlib.import_module(place), attribute)
    return True


def test_the_readme_is_read_in_half_a_minute() -> None:
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 150


@pytest.mark.thorough
def test_the_tables_of_families_are_those_of_the_tests() -> None:
    text = DOCUMENT.read_text()
    assert text == update(text, tables(), DOCUMENT), "run: python tests/families.py"


GALLERY = (REPOSITORY / "docs/gallery.md").read_text()
DEPLOYMENT = GALLERY[GALLERY.index("\n## Deployment") : GALLERY.index("\n## Without progress bars")]


def words_of(text: str) -> list[str]:
    """Lines without their numbers and the rules of tables, which differ between machines."""
    return [" ".join(word for word in line.split() if not re.search(r"\d|-{2}", word)) for line in text.splitlines()]


def walk(text: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Runs code and commands of a page in order, and compares what they print with what it shows; its variables."""
    names: dict[str, Any] = {}
    printed = ""
    for kind, block in re.findall(r"```(python|sh|text)\n(.*?)```", text, re.DOTALL):
        if kind == "python":
            exec(block, names)
        elif kind == "sh":
            for command in block.splitlines():
                assert main(shlex.split(command)[1:]) == 0, command
        else:
            assert set(words_of(block)) <= set(words_of(printed)), printed
            continue
        printed = capsys.readouterr().out
    return names


@pytest.mark.thorough
def test_models_are_deployed_in_other_engines_as_the_gallery_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    names = walk(GALLERY[: GALLERY.index("\n## Half")] + DEPLOYMENT, capsys)
    torch.set_num_threads(threads)
    assert any(edit.kind == "factors" for edit in names["deployed"].architecture.edits)
    for logits in names["found"].values():
        np.testing.assert_allclose(logits, names["expected"], atol=1e-4)


def test_the_gallery_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lpvit.progress._shown", True)  # which the last example changes
    names = walk(GALLERY.replace(DEPLOYMENT, ""), capsys)
    assert names["pruned"].report.loc["(model)", "keep_ratio"] <= 0.5
    assert names["logits"].shape == (1, 10)
    before, after = names["nearness"]
    assert before.cosine < after.cosine
    dense, _, tuned = names["overlaps"]
    assert dense > 0.8
    assert tuned > 0.9 * dense
    assert np.corrcoef(names["pairs"])[0, 1] > 0.95


@pytest.mark.thorough
def test_the_page_on_models_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/your_model.md").read_text(), re.DOTALL):
        exec(code, names)
    assert names["logits"].shape == (16, 10)
    assert [level.shape for level in names["levels"]] == [(16, 48, 4, 4)] * 2
    assert names["again"].model(names["loader"][0])["scores"].shape == (16, 10)


def test_the_example_of_the_readme_runs_on_folders_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a smaller model, and random weights: nothing is fetched."""
    generator = np.random.default_rng(0)
    for split, name, number in product(("train", "val"), ("cat", "dog"), range(3)):
        file = tmp_path / "photos" / split / name / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (240, 280, 3), dtype=np.uint8)).save(file)
    monkeypatch.chdir(tmp_path)
    smaller = partial(timm.create_model, embed_dim=64, depth=2, num_heads=2)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **options: smaller(name, **options))
    code, *_ = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["pruned"].report.loc["(model)", "keep_ratio"] <= 0.5
    assert (tmp_path / "deit_small_half.onnx").exists()


def test_every_public_name_has_its_place_on_the_api_page() -> None:
    named = re.findall(r"^::: lpvit\.(\w+)$", (REPOSITORY / "docs/api.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(lpvit.__all__)


def test_the_diagrams_are_those_of_their_script() -> None:
    """Run `python docs/diagrams.py` where they are not."""
    script = runpy.run_path(str(REPOSITORY / "docs/diagrams.py"))
    for name, diagram in script["DIAGRAMS"].items():
        assert (script["IMAGES"] / name).read_text() == diagram(), name


def test_the_diagram_of_the_pipeline_has_stages_that_exist() -> None:
    rules = "\n".join(file.read_text() for file in (REPOSITORY / "workflow/rules").glob("*.smk"))
    existing = {*re.findall(r"^rule (\w+):", rules, re.MULTILINE), "report"}  # which are several rules
    boxes = runpy.run_path(str(REPOSITORY / "docs/diagrams.py"))["PIPELINE"].values()
    drawn = {name for box in boxes for name in re.findall(r"\w+", re.sub(r"\(.*?\)", "", box.lines[0]))}
    assert drawn <= existing, drawn - existing


def test_every_note_of_the_benchmarks_is_listed_on_their_page_and_on_the_site() -> None:
    page, site = (REPOSITORY / "benchmarks/README.md").read_text(), (REPOSITORY / "mkdocs.yml").read_text()
    for note in (REPOSITORY / "benchmarks/notes").glob("*.md"):
        assert f"(notes/{note.name})" in page, note.name
        assert f": benchmarks/notes/{note.name}\n" in site, note.name


def test_every_page_of_the_documentation_stands_in_its_table_of_contents() -> None:
    contents = (REPOSITORY / "docs/README.md").read_text()
    site = (REPOSITORY / "mkdocs.yml").read_text()
    for page in (REPOSITORY / "docs").glob("*.md"):
        if page.name != "README.md":
            assert f"({page.name})" in contents, page.name
            assert f": {page.name}\n" in site, page.name
