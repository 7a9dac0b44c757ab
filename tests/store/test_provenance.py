"""Digests follow imports, and only what runs counts."""

import re
from functools import partial
from pathlib import Path

import pytest
from conftest import REPOSITORY

from lpvit.models.edits import edit_modules
from lpvit.store.provenance import PACKAGE, source_digests
from lpvit.strategies import module_names


@pytest.fixture
def project(tmp_path: Path) -> Path:
    package = tmp_path / "pkg"
    (package / "sub").mkdir(parents=True)
    files = {
        "__init__.py": '__version__ = "1"\nif TYPE_CHECKING:\n    from pkg.unrelated import x\n',
        "direct.py": "from pkg.indirect import f\n",
        "indirect.py": '"""Docstring."""\n\n\ndef f():\n    # why\n    return 1\n',
        "unrelated.py": "x = 1\n",
        "sub/__init__.py": "from pkg.sub.leaf import y\n",
        "sub/leaf.py": "y = 1\n",
    }
    for name, text in files.items():
        (package / name).write_text(text)
    (tmp_path / "script.py").write_text("import os\nfrom pkg import direct\nimport pkg.sub\n")
    return tmp_path


@pytest.mark.parametrize(
    "file", ["script.py", "pkg/direct.py", "pkg/indirect.py", "pkg/sub/__init__.py", "pkg/sub/leaf.py"]
)
def test_an_edit_of_anything_imported_changes_the_digest(project: Path, file: str) -> None:
    before = source_digests(project / "script.py", project / "pkg")
    with (project / file).open("a") as module:
        module.write("\nz = 2\n")
    assert source_digests(project / "script.py", project / "pkg") != before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("pkg/unrelated.py", "x = 1", "x = 2"),
        ("pkg/indirect.py", "Docstring.", "Another docstring."),
        ("pkg/indirect.py", "# why", "# because"),
        ("pkg/indirect.py", "    return 1", "\n    return (1)"),
        ("pkg/__init__.py", '"1"', '"2"'),
        ("pkg/__init__.py", "from pkg.unrelated import x", "from pkg.unrelated import x as z"),
    ],
)
def test_prose_layout_version_types_and_unrelated_modules_do_not_count(
    project: Path, file: str, old: str, new: str
) -> None:
    before = source_digests(project / "script.py", project / "pkg")
    path = project / file
    path.write_text(path.read_text().replace(old, new))
    assert source_digests(project / "script.py", project / "pkg") == before


def test_modules_that_import_each_other_end_the_walk(project: Path) -> None:
    (project / "pkg/indirect.py").write_text("import pkg.direct\n")
    assert set(source_digests(project / "script.py", project / "pkg")) == {
        "script.py", "direct.py", "indirect.py", "sub/__init__.py", "sub/leaf.py",
    }  # fmt: skip


def test_only_the_digest_of_the_edited_module_changes(project: Path) -> None:
    before = source_digests(project / "script.py", project / "pkg")
    (project / "pkg/sub/leaf.py").write_text("y = 2\n")
    after = source_digests(project / "script.py", project / "pkg")
    assert {name for name in after if after[name] != before[name]} == {"sub/leaf.py"}


def test_of_what_handles_files_and_errors_only_the_constants_that_are_imported_count(project: Path) -> None:
    (project / "pkg/store").mkdir()
    tables, errors = project / "pkg/store/tables.py", project / "pkg/errors.py"
    (project / "script.py").write_text("from pkg.errors import E\nfrom pkg.store.tables import ONE, read\n")
    errors.write_text("class E(Exception): ...\n")

    def digests(text: str) -> dict[str, str]:
        tables.write_text(text)
        return source_digests(project / "script.py", project / "pkg")

    before = digests("ONE = 1\nTWO = 2\ndef read(): ...\n")
    assert before.keys() == {"script.py", "store/tables.py: ONE"}
    errors.write_text("class E(Exception):\n    other = 1\n")
    assert digests("ONE = 1\nTWO = 3\ndef read(): return 1\n") == before
    assert digests("ONE = 2\nTWO = 2\ndef read(): ...\n") != before


UNPACKING = ["models/unpacking/edit"]  # of every model, when it is built
EDITS = {  # stage -> modules that replay what it does to a model
    "build_masks": ["structures/blocks/edit", "schemes/edit", "schemes/kinds/token_merging/merger"],
    "narrow_model": ["structures/width/edit", "schemes/edit", "schemes/kinds/token_merging/merger"],
    "count_costs": ["schemes/edit", "schemes/kinds/token_merging/merger"],
    "finetune": ["structures/blocks/edit"],
    "align_model": ["bases/edit"],
    "quantise": ["quantisation/edit"],
    "fetch_dense": UNPACKING,
    "train_dense": UNPACKING,
    "evaluate": UNPACKING,
}


@pytest.mark.parametrize("stage", EDITS)
def test_a_stage_depends_on_the_edits_that_it_makes_and_so_does_what_reads_its_results(stage: str) -> None:
    edits = {module.removeprefix("lpvit.").replace(".", "/") for module in edit_modules().values()}
    found = {name.removesuffix(".py") for name in source_digests(REPOSITORY / "workflow/scripts" / f"{stage}.py")}
    assert set(EDITS[stage]) <= found
    if EDITS[stage] == UNPACKING:
        assert edits & found == set(UNPACKING)


REGISTRIES = {
    "lpvit.allocation.allocators": "allocation/settings.py",
    "lpvit.data.layouts": "data/settings.py",
    "lpvit.data.loaders": "data/settings.py",
    "lpvit.report.figures": "report/drawing.py",
    "lpvit.schemes.kinds": "schemes/settings.py",
    "lpvit.structures": "structures/settings.py",
    "lpvit.structures.blocks.distortions": "structures/blocks/settings.py",
    "lpvit.structures.blocks.saliencies": "structures/blocks/settings.py",
    "lpvit.structures.blocks.statistics": "structures/blocks/settings.py",
}  # -> a module that every script which can run one of the strategies imports


def test_all_registries_are_known_here_and_chosen_from_in_the_rules() -> None:
    named = {name for file in PACKAGE.rglob("*.py") for name in re.findall(r'Registry\("([\w.]+)"', file.read_text())}
    assert named <= REGISTRIES.keys()
    rules = (REPOSITORY / "workflow/rules/common.smk").read_text()
    assert all(f'"{name}"' in rules for name in REGISTRIES)


@pytest.mark.parametrize("script", sorted((REPOSITORY / "workflow/scripts").glob("*.py")), ids=lambda file: file.stem)
@pytest.mark.parametrize("registry", REGISTRIES)
def test_a_script_that_can_run_a_strategy_lists_it_if_it_is_chosen_or_if_nothing_says_which_ones_are(
    script: Path, registry: str
) -> None:
    folder = PACKAGE.joinpath(*registry.split(".")[1:])
    shared = {"calibration", "settings", "structure"}  # of all structures
    strategies = module_names(registry).keys() - shared

    def listed(chosen: dict[str, list[str]]) -> set[str]:
        files = [PACKAGE / name for name in source_digests(script, chosen=chosen)]
        inside = (file.relative_to(folder).parts[0] for file in files if file.is_relative_to(folder))
        return {name.removesuffix(".py").rstrip("_") for name in inside} & strategies

    if REGISTRIES[registry] in source_digests(script):
        assert listed({}) == strategies
        assert all(name in listed({registry: [name]}) for name in strategies)


def test_a_package_that_is_named_in_a_string_counts_as_far_as_it_is_chosen(project: Path) -> None:
    kinds = project / "pkg/kinds"
    kinds.mkdir()
    for name in ("__init__", "one", "two", "lambda_"):
        (kinds / f"{name}.py").write_text(f"name = '{name}'\n")
    (project / "script.py").write_text('KINDS = "pkg.kinds"\n')
    digests = partial(source_digests, project / "script.py", project / "pkg")
    always = {"script.py", "kinds/__init__.py"}
    assert digests().keys() == always | {"kinds/one.py", "kinds/two.py", "kinds/lambda_.py"}
    assert digests(chosen={"pkg.kinds": ["two", "lambda"]}).keys() == always | {"kinds/two.py", "kinds/lambda_.py"}
    assert digests(chosen={"pkg.kinds": []}).keys() == always
    assert digests(chosen={"pkg.others": []}).keys() == digests().keys()


def test_a_module_whose_name_is_put_together_counts_as_far_as_it_is_chosen(project: Path) -> None:
    for name in ("one", "two"):
        (folder := project / "pkg/kinds" / name).mkdir(parents=True)
        for module in ("main", "settings"):
            (folder / f"{module}.py").write_text(f"name = '{name}'\n")
    (project / "pkg/kinds/__init__.py").write_text("")
    (project / "script.py").write_text('module = import_module(f"pkg.kinds.{name}.main")\n')
    digests = partial(source_digests, project / "script.py", project / "pkg")
    always = {"script.py", "kinds/__init__.py"}
    assert digests().keys() == always | {"kinds/one/main.py", "kinds/two/main.py"}
    assert digests(chosen={"pkg.kinds": ["two"]}).keys() == always | {"kinds/two/main.py"}
