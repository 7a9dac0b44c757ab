"""Kernels as programs apart from torch: for processors that are only emulated, and with sanitizers."""

import copy
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_attention import SHAPES as ATTENTIONS
from test_attention import heads_of, in_float64, require_close
from test_attention import require_whole_numbers as require_whole_attention
from test_sparse import SHAPES, assert_equal, masked_pair, random_mask
from test_sparse_int8 import layer_of_whole_numbers, whole_inputs
from torch import Tensor

from lpvit.sparse import BlockSparseLinear, build
from lpvit.sparse.build import InstructionSet

COMPILER, EMULATOR, DISASSEMBLER = "aarch64-linux-gnu-g++", "qemu-aarch64", "aarch64-linux-gnu-objdump"
MISSING = [tool for tool in (COMPILER, EMULATOR, DISASSEMBLER) if shutil.which(tool) is None]
SETS = {found.name: found for sets in build.INSTRUCTION_SETS.values() for found in sets}
# The instructions of AVX-VNNI as those of AVX-512 that are the same on vectors of 256 bits.
SETS["avx_vnni_of_avx512"] = InstructionSet(
    "avx_vnni", ("-mavx2", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni"), 8, 6, "int8"
)
NEEDS = {
    "avx512": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx512_vnni_bf16": "avx512_bf16",
    "avx_vnni": "avx_vnni",
    "avx_vnni_of_avx512": "avx512_vnni",
}
SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def needs_emulator(test: Callable[..., None]) -> Callable[..., None]:
    reason = f"needs {' and '.join(MISSING)} (Debian: g++-aarch64-linux-gnu, qemu-user)"
    return pytest.mark.thorough(pytest.mark.skipif(bool(MISSING), reason=reason)(test))


class Program:
    """A kernel that takes a problem and prints the outputs."""

    def __init__(
        self, folder: Path, found: InstructionSet, compiler: str, flags: tuple[str, ...], kind: str = "kernel"
    ) -> None:
        self.file, self.emulator = folder / f"{kind}_{found.name}", [EMULATOR] if compiler == COMPILER else []
        sources = [str(build.SOURCES / f"{kind}.cpp"), str(Path(__file__).with_name(f"{kind}_program.cpp"))]
        flags = (*build.FLAGS, *found.flags, *found.definitions(), *flags, "-I", str(build.SOURCES))
        numbers = ["-DLPVIT_INT8"] if found.arithmetic == "int8" else []
        subprocess.run([compiler, *flags, *numbers, *sources, "-o", str(self.file)], check=True)

    def run(self, parts: list[np.ndarray]) -> Tensor:
        problem = b"".join(part.tobytes() for part in parts)
        done = subprocess.run([*self.emulator, str(self.file)], input=problem, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return torch.frombuffer(bytearray(done.stdout), dtype=torch.float32)

    def attention(self, packed: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
        images, tokens, _, heads, features = packed.shape
        sizes = (images, tokens, heads, features, 0 if mask is None else len(mask), bias is not None)
        tables = [table.numpy() for table in (bias, mask) if table is not None]
        outputs = self.run([np.array(sizes, np.int64), packed.numpy(), *tables])
        return outputs.view(images, tokens, heads * features)

    def __call__(self, layer: BlockSparseLinear, inputs: Tensor, residual: Tensor | None = None) -> Tensor:
        sizes = (
            *inputs.shape,
            layer.out_features,
            *layer.block_shape,
            layer.grid.rows,
            len(layer.values),
            layer.bias is not None,
            layer.gelu,
            layer.norm_weight is not None,
            residual is not None,
        )
        parts = [np.array(sizes, np.int64), inputs.numpy(), layer.values.transpose(1, 2).contiguous().numpy()]
        tensors = [layer.crow_indices, layer.col_indices, layer.bias]
        tensors += [layer.scales, layer.row_sums] if layer.values.dtype == torch.int8 else []
        tensors += [layer.norm_weight, layer.norm_bias, residual]
        parts += [tensor.numpy() for tensor in tensors if tensor is not None]
        return self.run(parts).view(len(inputs), layer.out_features)


@pytest.fixture(scope="module")
def program_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Program]:
    made: dict[tuple[object, ...], Program] = {}

    def program(name: str, compiler: str = "c++", flags: tuple[str, ...] = (), kind: str = "kernel") -> Program:
        if compiler == "c++":
            needed = NEEDS.get(name, "avx2" if "avx2" in name else "sse2")
            if platform.machine() != "x86_64" or needed not in Path("/proc/cpuinfo").read_text().split():
                pytest.skip(f"this CPU has no {needed}")
        if (key := (kind, name, flags)) not in made:
            made[key] = Program(tmp_path_factory.mktemp(name), SETS[name], compiler, flags, kind)
        return made[key]

    return program


def require_masked_dense(program: Program, shape: tuple[int, int], block_shape: tuple[int, int]) -> None:
    for sparsity, bias, gelu in ((0.0, True, False), (0.5, False, True), (0.9, True, True), (1.0, True, False)):
        mask = random_mask(shape, block_shape, sparsity)
        dense, sparse = masked_pair(shape, block_shape, mask, bias, gelu)
        for tokens in (1, 13, 43):
            inputs = torch.randn(tokens, shape[1])
            assert_equal(program(sparse, inputs), dense.double()(inputs.double()).float())


def require_whole_numbers(program: Program, shape: tuple[int, int], block_shape: tuple[int, int]) -> None:
    for sparsity in (0.0, 0.5, 1.0):
        weight, layer = layer_of_whole_numbers(shape, block_shape, sparsity)
        for tokens in (1, 13, 43):
            inputs = whole_inputs(tokens, shape[1])
            assert torch.equal(program(layer, inputs.float()).long(), inputs @ weight.T)


def require_fused_operations(program: Program, shape: tuple[int, int], block_shape: tuple[int, int]) -> None:
    int8 = SETS[program.file.name.removeprefix("kernel_")].arithmetic == "int8"
    linear, mask = torch.nn.Linear(shape[1], shape[0]), random_mask(shape, block_shape, 0.5)
    with torch.no_grad():
        sparse = BlockSparseLinear.from_linear(linear, mask, block_shape, precision="int8" if int8 else "float32")
        norm = torch.nn.LayerNorm(shape[1])
        norm.weight.uniform_(0.5, 1.5)
        for tokens in (1, 13, 43):
            inputs, residual = 3 * torch.randn(tokens, shape[1]) + 20, torch.randn(tokens, shape[0])
            expected = sparse(norm(inputs)) + residual
            normalised = copy.deepcopy(sparse)
            normalised.take_norm(norm)
            step = 0.06 * sparse.dense_weight().abs().max() if int8 else 1e-5  # two inputs, where norms round otherwise
            assert (program(normalised, inputs, residual) - expected).abs().max() <= step + 1e-5 * expected.abs().max()


def require_attention(program: Program) -> None:
    int8 = SETS[program.file.name.removeprefix("attention_")].arithmetic == "int8"
    for images, tokens, heads, features in ATTENTIONS:
        parts = heads_of(images, tokens, heads, features, torch.float32)
        bias, mask = torch.randn(heads, tokens, tokens), torch.randn(images, tokens, tokens)
        for tables in ((None, None), (bias, None), (bias, mask)):
            outputs = program.attention(torch.stack(parts, dim=2), *tables)
            if int8:
                require_whole_attention(outputs, parts, *tables)
            else:
                require_close(outputs, in_float64(parts, features**-0.5, *tables), parts)


@needs_emulator
@pytest.mark.parametrize("name", ["neon", "neon_dot"])
def test_attention_of_neon_equals_that_of_torch(program_of, name):
    require_attention(program_of(name, COMPILER, ("-static",), "attention"))


@needs_emulator
@pytest.mark.parametrize(("shape", "block_shape"), SHAPES)
def test_neon_equals_the_masked_dense_layer(program_of, shape, block_shape):
    program = program_of("neon", COMPILER, ("-static",))
    require_masked_dense(program, shape, block_shape)
    require_fused_operations(program, shape, block_shape)


@needs_emulator
@pytest.mark.parametrize("name", ["neon_dot", "neon_int8"])
@pytest.mark.parametrize(("shape", "block_shape"), SHAPES)
def test_int8_of_neon_gives_the_sums_of_whole_numbers(program_of, name, shape, block_shape):
    program = program_of(name, COMPILER, ("-static",))
    require_whole_numbers(program, shape, block_shape)
    require_fused_operations(program, shape, block_shape)


@pytest.mark.parametrize(("shape", "block_shape"), SHAPES)
def test_the_256_bit_vnni_kernel_gives_the_sums_of_whole_numbers(program_of, shape, block_shape):
    require_whole_numbers(program_of("avx_vnni_of_avx512"), shape, block_shape)


def test_the_256_bit_vnni_attention_multiplies_whole_numbers(program_of):
    require_attention(program_of("avx_vnni_of_avx512", kind="attention"))


@pytest.mark.sanitizers
@pytest.mark.parametrize("name", [name for name, found in SETS.items() if found.arithmetic != "bfloat16"])
def test_no_kernel_reads_or_writes_where_it_should_not(program_of, name):
    if "neon" in name:
        pytest.skip("sanitizers do not run under the emulator")
    program = program_of(name, flags=SANITIZERS)
    for shape, block_shape in SHAPES:
        (require_whole_numbers if SETS[name].arithmetic == "int8" else require_masked_dense)(
            program, shape, block_shape
        )
        require_fused_operations(program, shape, block_shape)


@pytest.mark.sanitizers
@pytest.mark.parametrize(
    "name", [name for name, found in SETS.items() if found.attends and found.arithmetic != "bfloat16"]
)
def test_no_attention_reads_or_writes_where_it_should_not(program_of, name):
    if "neon" in name:
        pytest.skip("sanitizers do not run under the emulator")
    require_attention(program_of(name, flags=SANITIZERS, kind="attention"))


@needs_emulator
@pytest.mark.parametrize(("name", "product"), [("neon", "fmla"), ("neon_dot", "sdot")])
def test_the_sums_of_a_whole_tile_stay_in_registers(program_of, name, product):
    file = program_of(name, COMPILER, ("-static",)).file
    code = subprocess.run([DISASSEMBLER, "-d", str(file)], capture_output=True, text=True, check=True).stdout
    tokens = SETS[name].tile_tokens
    tile = re.search(rf"multiply_tileILi4ELi2ELi{tokens}E\w*>:\n(.*?)\n\n", code, re.DOTALL)
    assert tile is not None
    instructions = tile[1].splitlines()
    products = [number for number, line in enumerate(instructions) if product in line]
    products = products[: 2 * tokens]
    assert len(products) == 2 * tokens
    inner_loop = instructions[products[0] : products[-1]]
    assert not [line for line in inner_loop if "[sp" in line]
