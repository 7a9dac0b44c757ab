"""Library, pipeline and benchmarks prune through the same functions."""

import ast

import pytest
from conftest import REPOSITORY

LIBRARY = "lpvit/api/prune.py"
SCRIPTS = {f"workflow/scripts/{name}.py" for name in ("prune_iteratively", "allocate_sparsity", "build_masks")}
BENCHMARKS = {"benchmarks/pruning.py", "benchmarks/factors.py"}
ACT = {"lpvit/pruning/prune.py", "lpvit/pruning/rounds.py"}


def names_called(file: str) -> set[str]:
    """Last parts of the names of all functions that a file calls."""
    tree = ast.parse((REPOSITORY / file).read_text())
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {ast.unparse(function).rpartition(".")[2] for function in calls}


def test_the_library_leaves_the_act_to_the_package_of_that_name() -> None:
    called = names_called(LIBRARY)
    assert "prune_to_budget" in called
    assert called.isdisjoint({"allocate", "choose", "compress", "before_last_round", "measure"})


@pytest.mark.parametrize(
    ("function", "callers"),
    [
        ("before_last_round", {"workflow/scripts/prune_iteratively.py", "benchmarks/pruning.py"}),
        ("choose", {"workflow/scripts/build_masks.py", *BENCHMARKS}),
        ("compress", {"workflow/scripts/build_masks.py", *BENCHMARKS}),
        ("allocate", {"workflow/scripts/allocate_sparsity.py", *BENCHMARKS}),
    ],
)
def test_each_step_of_the_act_is_one_function_for_all_callers(function: str, callers: set[str]) -> None:
    for file in callers:
        assert function in names_called(file), file
    assert any(function in names_called(file) for file in ACT)
    assert {file for file in SCRIPTS if function in names_called(file)} <= callers
