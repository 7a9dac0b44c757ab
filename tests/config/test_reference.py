"""The generated reference: complete, readable, and checked for drift."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from conftest import REPOSITORY, TINY

from lpvit.allocation.allocators import Allocator
from lpvit.allocation.settings import Budget
from lpvit.config import reference
from lpvit.config.config import Config, Experiment
from lpvit.config.files import read_yaml
from lpvit.data.settings import Calibration, Dataset
from lpvit.errors import LpvitError
from lpvit.models.settings import Model
from lpvit.schemes.settings import Scheme
from lpvit.settings import Compute, Section
from lpvit.store.schemas import ALL
from lpvit.structures.blocks.distortions import Distortion
from lpvit.structures.blocks.saliencies import Saliency
from lpvit.structures.settings import StructureSettings
from lpvit.training.settings import Recipe

README = """# A title
<!-- reference:config -->
<!-- /reference:config -->
between
<!-- reference:artifacts -->
stale
<!-- /reference:artifacts -->
<!-- reference:api -->
<!-- /reference:api -->
the end
"""


def row(markdown: str, key: str) -> list[str]:
    line = next(line for line in markdown.splitlines() if line.startswith(f"| `{key}` |"))
    return [cell.strip() for cell in line.strip("|").replace(r"\|", "/").replace(r"\<", "<").split("|")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("configuration.md", "artifacts.md", "api.md"):
        (tmp_path / name).write_text(README)
    return tmp_path


SECTIONS = [
    (Dataset, "`datasets.<name>`"),
    (Model, "`models.<name>`"),
    (Calibration, "`calibrations.<name>`"),
    (Budget, "`budgets.<name>`"),
    (Recipe, "`recipes.<name>`"),
    (Experiment, "`experiments.<name>`"),
    (Compute, "`compute`"),
    *((each, f"`prunings.<name>` with `structure: {name}`") for name, each in StructureSettings.registry.items()),
    *((each, f"`schemes.<name>` with `scheme: {name}`") for name, each in Scheme.registry.items()),
]
STRATEGIES = [
    ("budgets.<name>.allocator", Allocator),
    ("prunings.<name>.saliency", Saliency),
    ("prunings.<name>.distortion", Distortion),
]


@pytest.mark.parametrize(("section", "title"), SECTIONS, ids=str)
def test_every_key_of_a_section_stands_in_its_table(section: type[Section], title: str) -> None:
    part = reference.config_reference().split(f"\n#### {title}\n")[1].split("\n####")[0]
    assert section.__doc__ is not None
    assert inspect.cleandoc(section.__doc__) in part
    for key, field in section.model_fields.items():
        assert row(part, key)[3] == (field.description or "").replace("|", "/")


@pytest.mark.parametrize(("key", "interface"), STRATEGIES)
def test_every_strategy_stands_in_the_table_of_its_key_with_its_own_keys(key: str, interface: type[Section]) -> None:
    part = reference.config_reference().split(f"\n##### `{key}`\n")[1].split("\n####")[0]
    for name, strategy in interface.registry.items():  # type: ignore[attr-defined]
        of_strategy = part.split(f"| `name` | `{name}` |")[1].split("| `name` |")[0]
        assert strategy.__doc__.splitlines()[0] in of_strategy
        for own, field in strategy.model_fields.items():
            assert own == "name" or f"| `{own}` |" in of_strategy
            assert own == "name" or f"of `{name}`: {field.description}" in of_strategy


def test_top_level_keys_come_first() -> None:
    first = reference.config_reference().split("####")[0]
    assert all(row(first, key)[3] == field.description for key, field in Config.model_fields.items())


@pytest.mark.parametrize(
    ("key", "value", "default"),
    [
        ("block_shape", "[integer > 0, integer > 0]", "required"),
        ("layers", "[text, ...]", "`[qkv, proj, fc1, fc2]`"),
        ("order", "`1`, `2`", "`2`"),
        ("macs", "number > 0, ≤ 1 or `null`", "`null`"),
        ("power_beta", "`off`, `auto` or number ≥ 0", "`off`"),
        ("crop_ratio", "[number, number]", "`[0.75, 1.333]`"),
        ("checkpoint", "path or `null`", "`null`"),
        ("options", "keys with values", "`{}`"),
        ("budgets", "names, see below", "required"),
        ("prunings", "names, see below", "required"),
        ("schemes", "names, see below", ""),
        ("distortion", "`empirical`, `gauss_newton`, `taylor`; with keys, see below", "`taylor`"),
        ("compute", "see below", ""),
        ("batch_sizes", "[integer > 0 or `largest`, ...]", "`[1, 32, largest]`"),
    ],
)
def test_types_and_defaults_are_told_in_words(key: str, value: str, default: str) -> None:
    assert row(reference.config_reference(), key)[1:3] == [value, default]


def test_every_column_of_every_artifact_has_its_type_and_unit() -> None:
    markdown = reference.artifact_reference()
    for schema in ALL:
        part = markdown.split(f"#### `{schema.file}`")[1].split("####")[0]
        for column in schema.columns:
            cells = row(part, column.name)
            assert cells[1].startswith(str(column.dtype))
            assert cells[2:] == [column.unit, column.description.replace("|", "/")]


def test_nullable_columns_say_so() -> None:
    assert row(reference.artifact_reference(), "problem")[1] == "string, or null"


def test_every_line_of_a_table_has_four_cells() -> None:
    tables = reference.config_reference() + "\n" + reference.artifact_reference()
    lines = [line.replace(r"\|", "") for line in tables.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {5}


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    updated = reference.update(README, {"config": "C", "artifacts": "A"}, "README.md")
    assert "stale" not in updated
    for part in (
        "# A title\n<!-- reference:config -->\n\nC\n\n<!-- /reference:config -->\nbetween",
        "\n\nA\n\n",
        "the end\n",
    ):
        assert part in updated
    assert reference.update(updated, {"config": "C", "artifacts": "A"}, "README.md") == updated


@pytest.mark.parametrize(
    "text", ["", "<!-- reference:config -->", "<!-- /reference:config --><!-- reference:config -->"]
)
def test_a_missing_marker_is_an_error_that_names_it(text: str) -> None:
    with pytest.raises(LpvitError, match=r"^README.md: the markers '<!-- reference:config -->' and"):
        reference.update(text, {"config": "C"}, "README.md")


def test_check_finds_drift_and_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reference.main([str(folder), "--check"]) == 1
    assert "configuration.md: its reference is out of date; run: python -m" in capsys.readouterr().err
    assert (folder / "configuration.md").read_text() == README


def test_check_passes_after_a_rewrite_and_fails_after_an_edit(folder: Path) -> None:
    assert reference.main([str(folder)]) == 0
    assert reference.main([str(folder), "--check"]) == 0
    file = folder / "configuration.md"
    file.write_text(file.read_text().replace("share of the prunable weights", "part of the prunable weights"))
    assert reference.main([str(folder), "--check"]) == 1


def test_a_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reference.main([str(tmp_path / "absent.md")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_reference_needs_neither_torch_nor_matplotlib() -> None:
    code = "import lpvit.config.reference, sys; assert not {'torch', 'matplotlib', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_editors_find_the_configs_that_are_shipped_right_and_a_misspelt_key_wrong() -> None:
    schema = json.loads(reference.editor_schema())
    for file in (REPOSITORY / "config").glob("*.yaml"):
        assert file.read_text().startswith("# yaml-language-server: $schema=schema.json\n"), file.name
        jsonschema.validate(read_yaml(file), schema)
    for accepted in ("exact", {"name": "exact"}, {"name": "lpvit", "smoothing": 0.5}):
        jsonschema.validate({**TINY, "budgets": {"half": {"macs": 0.5, "allocator": accepted}}}, schema)
    for refused in ("exakt", {"name": "exact", "smoothing": 0.5}, {"smoothing": 0.5}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**TINY, "budgets": {"half": {"macs": 0.5, "allocator": refused}}}, schema)
    jsonschema.validate({**TINY, "prunings": {"b8": {"structure": "width"}}}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**TINY, "prunings": {"b8": {"structure": "width", "block_shape": [8, 8]}}}, schema)
    with pytest.raises(jsonschema.ValidationError, match="mac"):
        jsonschema.validate({**TINY, "budgets": {"half": {"mac": 0.5}}}, schema)


def test_the_schema_is_written_beside_the_configs_and_checked_for_drift(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for name in ("configuration.md", "artifacts.md", "api.md"):
        (docs / name).write_text(README)
    assert reference.main([str(docs)]) == 0
    schema = tmp_path / "config/schema.json"
    schema.write_text(schema.read_text().replace("share of", "part of"))
    assert reference.main([str(docs), "--check"]) == 1
