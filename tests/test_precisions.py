"""The table of precisions: what each row claims is so, and one more row is all that settings need."""

import ast
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY

from lpvit.benchmark.settings import ENGINES
from lpvit.costs.energy import energy_per_weight
from lpvit.costs.settings import Energy
from lpvit.precisions import CONVERTED, FLOATING, PRECISIONS, SPARSE, Precision, dtype_of, has_kernel, name_of
from lpvit.sparse.linear import BlockSparseLinear
from lpvit.sparse.operator import path_for

PACKAGE = REPOSITORY / "lpvit"

# A row is added to the source of the table before anything else is imported.
ADDED = r"""
import sys, types
from pathlib import Path

source, first = Path(sys.argv[1]).read_text(), "    for row in (\n"
assert source.count(first) == 1
row = 'Precision("float64", bytes=8, picojoules=20.0, tolerance=1e-9, kernels=("cpu", "cuda"), converts=True),'
module = sys.modules["lpvit.precisions"] = types.ModuleType("lpvit.precisions")
exec(source.replace(first, first + row), vars(module))

from lpvit.benchmark.settings import Benchmark
from lpvit.cli.main import _parser
from lpvit.config.reference import config_reference
from lpvit.costs.energy import energy_per_weight
from lpvit.costs.settings import Energy
from lpvit.quantisation.settings import Quantisation
from lpvit.training.settings import Recipe

assert energy_per_weight(1, Energy(dtype="float64")) > energy_per_weight(1, Energy())
assert Quantisation(precision="float64").looks_at_images is False
Benchmark(dtype="float64")
Recipe(epochs=1, batch_size=1, learning_rate=1, precision="float64")
_parser().parse_args(["export", "a.pt", "a.xml", "--precision", "float64"])
_parser().parse_args(["bench", "a.pt", "--dtype", "float64"])
reference = config_reference()
assert reference.count("`float64`") == 4 and "20 (float64)" in reference, reference

import torch
from torch import nn
from lpvit.quantisation.quantise import quantise_model
from lpvit.sparse.linear import BlockSparseLinear

layer, mask = nn.Linear(4, 4), torch.ones(2, 2, dtype=torch.bool)
assert BlockSparseLinear.from_linear(layer, mask, (2, 2), precision="float64").values.dtype == torch.float64
converted = quantise_model(layer, {}, (2, 2), None, Quantisation(precision="float64"), "cpu")
assert converted.weight.dtype == torch.float64
"""


def test_a_precision_is_one_row_which_settings_commands_reference_and_conversions_follow() -> None:
    command = [sys.executable, "-c", ADDED, PACKAGE / "precisions.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr


def test_no_module_but_its_kernel_or_conversion_names_a_precision_other_than_the_defaults() -> None:
    named = {
        str(file.relative_to(PACKAGE))
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and node.value in ("bfloat16", "float16")
    }
    assert named == {"precisions.py", "api/export.py", "sparse/build.py", "training/trainer.py"}


@pytest.mark.parametrize("row", PRECISIONS.values(), ids=PRECISIONS)
def test_a_row_describes_the_dtype_of_its_name(row: Precision) -> None:
    dtype = dtype_of(row.name)
    assert name_of(dtype) == row.name
    assert dtype.itemsize == row.bytes
    assert dtype.is_floating_point == row.floating == (row.rewriting is not None)
    for device in ("cpu", "cuda", "mps"):
        assert has_kernel(dtype, device) == (device in row.kernels)


def test_numbers_of_more_bytes_cost_more_energy() -> None:
    energies = {row.bytes: energy_per_weight(50, Energy(dtype=row.name)) for row in PRECISIONS.values()}
    assert [energies[size] for size in sorted(energies)] == sorted(energies.values())


@pytest.mark.parametrize("name", SPARSE)
def test_every_sparse_precision_makes_a_layer_with_values_that_a_kernel_accepts(name: str) -> None:
    layer = torch.nn.Linear(8, 8)
    sparse = BlockSparseLinear.from_linear(layer, torch.eye(2, dtype=torch.bool), (4, 4), precision=name)
    assert name_of(sparse.values.dtype) == name
    assert path_for(torch.device("cpu"), sparse.values.dtype).reason != f"no kernel for {name} on 'cpu'"


def test_a_dtype_or_device_without_kernels_is_named() -> None:
    for dtype in (torch.float64, torch.float16):
        assert path_for(torch.device("cpu"), dtype).reason == f"no kernel for {name_of(dtype)} on 'cpu'"
    assert path_for(torch.device("meta"), torch.float32).reason == "no kernel for the device 'meta'"


def test_engines_are_those_of_the_rows_and_two_more() -> None:
    expected = {f"{engine}_{row.name}" for row in PRECISIONS.values() for engine in row.engines}
    assert set(ENGINES) == expected | {"openvino_int8_bfloat16", "onnxruntime_int8_static"}
    assert {*FLOATING, "int8"} == set(PRECISIONS) > set(CONVERTED)
