"""The house rules that can be counted: sizes, the list of packages, and the order of imports between files."""

import ast
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import REPOSITORY

MODULES = sorted((REPOSITORY / "lpvit").rglob("*.py"))
SCRIPTS = sorted((REPOSITORY / "workflow" / "scripts").glob("*.py"))
LINES, FUNCTION_LINES, SCRIPT_LINES, PARAMETERS = 400, 50, 36, 7
KERNELS = {"triton_kernel.py", "triton_parts.py"}  # a launch is one function, with pointers and sizes as parameters


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_a_module_is_short_and_so_are_its_functions(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= LINES
    for function in functions(file):
        if file.name not in KERNELS:
            assert (function.end_lineno or 0) - function.lineno < FUNCTION_LINES, function.name
            assert parameters(function) <= PARAMETERS, function.name


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_a_script_reads_calls_and_writes(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= SCRIPT_LINES
    assert not list(functions(file))


def test_contributing_lists_every_package_in_import_order_with_the_first_line_of_its_docstring() -> None:
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [layer.strip("()") for layer in contracts[0]["layers"]]
    files = {layer: REPOSITORY / "lpvit" / layer / "__init__.py" for layer in layers}
    lines = (REPOSITORY / "CONTRIBUTING.md").read_text().splitlines()
    listed = [tuple(line.strip("| ").split(" | ")) for line in lines if line.startswith("| `")]
    assert listed == [
        (f"`{layer}`", str(ast.get_docstring(ast.parse(file.read_text()))).splitlines()[0])
        for layer, file in files.items()
        if file.exists()
    ]


def test_no_files_import_each_other_in_a_circle() -> None:
    names = {".".join(file.relative_to(REPOSITORY).with_suffix("").parts): file for file in MODULES}
    TopologicalSorter({name: imported(file, names) - {name} for name, file in names.items()}).prepare()


def imported(file: Path, known: dict[str, Path]) -> set[str]:
    """The modules that a file imports when it is loaded, or within functions, but not for type checkers alone."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    found = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module)
    names = {name for node in found for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))}
    return {name for name in names if name in known}


def functions(file: Path) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef))


def parameters(function: ast.FunctionDef) -> int:
    """Those that every call gives, or could give by position: not options that a call names."""
    arguments = function.args
    required = [
        name for name, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default is None
    ]
    names = [argument.arg for argument in (*arguments.args, *required)]
    return len([name for name in names if name not in ("self", "cls")])


def test_names_of_test_files_are_unique_as_pytest_imports_them_by_these() -> None:
    names = [file.name for file in (REPOSITORY / "tests").rglob("*.py")]
    assert sorted(names) == sorted(set(names))
