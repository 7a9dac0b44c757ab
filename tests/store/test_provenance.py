"""Digests follow imports, and only what runs counts."""

import re
from functools import partial
from pathlib import Path

import pytest
from conftest import REPOSITORY

from lpvit.store.provenance import PACKAGE, source_digests


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


def registries() -> dict[str, list[str]]:
    """Packages of strategies -> their strategies: those that a string of the package names."""
    named = {
        name
        for file in PACKAGE.rglob("*.py")
        for name in re.findall(r'= "(lpvit(?:\.\w+)+)"', file.read_text())
        if PACKAGE.joinpath(*name.split(".")[1:], "__init__.py").is_file()
    }
    folders = {name: PACKAGE.joinpath(*name.split(".")[1:]) for name in named}
    return {
        name: sorted(file.stem for file in folder.iterdir() if file.stem[0] != "_" and file.name != "csrc")
        for name, folder in folders.items()
    }


@pytest.mark.parametrize("script", sorted((REPOSITORY / "workflow/scripts").glob("*.py")), ids=lambda file: file.stem)
def test_a_script_that_can_run_a_strategy_lists_it_if_it_is_chosen_or_if_nothing_says_which_ones_are(
    script: Path,
) -> None:
    every = source_digests(script)
    for registry, strategies in registries().items():
        folder = "/".join(registry.split(".")[1:])

        def listed(digests: dict[str, str], folder: str = folder) -> set[str]:
            inside = (name.removeprefix(f"{folder}/") for name in digests if name.startswith(f"{folder}/"))
            return {name.split("/")[0].removesuffix(".py") for name in inside} - {"__init__"}

        if any(
            f'"{registry}"' in (PACKAGE / name).read_text()
            for name in every
            if (PACKAGE / name).suffix == ".py" and (PACKAGE / name).is_file()
        ):
            assert listed(every) == set(strategies)
            for strategy in strategies:
                chosen = listed(source_digests(script, chosen={registry: [strategy.rstrip("_")]}))
                assert strategy in chosen


def test_a_package_that_is_named_in_a_string_counts_as_far_as_it_is_chosen(project: Path) -> None:
    kinds = project / "pkg/kinds"
    kinds.mkdir()
    for name in ("__init__", "one", "two", "lambda_"):
        (kinds / f"{name}.py").write_text(f"name = '{name}'\n")
    (project / "script.py").write_text('KINDS = "pkg.kinds"\n')
    digests = partial(source_digests, project / "script.py", project / "pkg")
    assert digests().keys() == {"script.py", "kinds/one.py", "kinds/two.py", "kinds/lambda_.py"}
    assert digests(chosen={"pkg.kinds": ["two", "lambda"]}).keys() == {"script.py", "kinds/two.py", "kinds/lambda_.py"}
    assert digests(chosen={"pkg.kinds": []}).keys() == {"script.py"}
    assert digests(chosen={"pkg.others": []}).keys() == digests().keys()
