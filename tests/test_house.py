"""The house rules that can be counted: short modules, functions, scripts, lists of parameters; the list of packages."""

import ast
import re
import tomllib
from collections.abc import Iterator
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


def functions(file: Path) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef))


def parameters(function: ast.FunctionDef) -> int:
    names = [argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def test_contributing_lists_the_packages_in_the_order_that_is_checked():
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [layer.strip("()") for layer in contracts[0]["layers"]]
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    listed = text.partition("and checked:")[2].partition(". ")[0]
    assert re.findall(r"`(\w+)`", listed) == layers
