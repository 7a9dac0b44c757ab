"""The kernel for 64-bit ARM, cross-compiled and run under an emulator."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from test_sparse import SHAPES, assert_equal, masked_pair, random_mask
from torch import Tensor

from lpvit.sparse import BlockSparseLinear, build

COMPILER, EMULATOR, DISASSEMBLER = "aarch64-linux-gnu-g++", "qemu-aarch64", "aarch64-linux-gnu-objdump"
MISSING = [tool for tool in (COMPILER, EMULATOR, DISASSEMBLER) if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"needs {' and '.join(MISSING)} (Debian: g++-aarch64-linux-gnu, qemu-user)"
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (neon,) = build.INSTRUCTION_SETS["aarch64"]
    executable = tmp_path_factory.mktemp("aarch64") / "kernel"
    sources = [str(build.SOURCES / "kernel.cpp"), str(Path(__file__).with_name("kernel_program.cpp"))]
    flags = [*build.FLAGS, *neon.flags, *neon.definitions(), "-static", "-I", str(build.SOURCES)]
    subprocess.run([COMPILER, *flags, *sources, "-o", str(executable)], check=True)
    return executable


def run(program: Path, layer: BlockSparseLinear, inputs: Tensor) -> Tensor:
    kept, height, width = layer.values.shape
    sizes = (
        *inputs.shape,
        layer.out_features,
        height,
        width,
        layer.grid.rows,
        kept,
        layer.bias is not None,
        layer.gelu,
    )
    parts = [np.array(sizes, np.int64), inputs.numpy(), layer.values.transpose(1, 2).contiguous().numpy()]
    parts += [layer.crow_indices.numpy(), layer.col_indices.numpy()]
    parts += [] if layer.bias is None else [layer.bias.numpy()]
    problem = b"".join(part.tobytes() for part in parts)
    done = subprocess.run([EMULATOR, str(program)], input=problem, capture_output=True, check=True)
    outputs = torch.frombuffer(bytearray(done.stdout), dtype=torch.float32)
    return outputs.view(len(inputs), layer.out_features)


@pytest.mark.parametrize(("shape", "block_shape"), SHAPES)
def test_equals_the_masked_dense_layer(program: Path, shape: tuple[int, int], block_shape: tuple[int, int]) -> None:
    for sparsity, bias, gelu in ((0.0, True, False), (0.5, False, True), (0.9, True, True), (1.0, True, False)):
        mask = random_mask(shape, block_shape, sparsity)
        dense, sparse = masked_pair(shape, block_shape, mask, bias, gelu)
        for tokens in (1, 13, 43):
            inputs = torch.randn(tokens, shape[1])
            assert_equal(run(program, sparse, inputs), dense.double()(inputs.double()).float())


def test_the_sums_of_a_whole_tile_stay_in_registers(program: Path) -> None:
    code = subprocess.run([DISASSEMBLER, "-d", str(program)], capture_output=True, text=True, check=True).stdout
    (neon,) = build.INSTRUCTION_SETS["aarch64"]
    tile = re.search(rf"multiply_tileILi4ELi2ELi{neon.tile_tokens}E\w*>:\n(.*?)\n\n", code, re.DOTALL)
    assert tile is not None
    instructions = tile[1].splitlines()
    products = [number for number, line in enumerate(instructions) if "fmla" in line]
    assert len(products) == 2 * neon.tile_tokens
    inner_loop = instructions[products[0] : products[-1]]
    assert not [line for line in inner_loop if "[sp" in line]
