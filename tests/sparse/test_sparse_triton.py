"""The Triton kernel: under Triton's interpreter on a CPU, compiled ahead for a Hopper GPU, and on the GPU at hand."""

import ctypes
import mmap
import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="Triton is made for Linux")

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
TOLERANCE = {FP32: 1e-6, FP16: 1e-3, BF16: 8e-3}  # norm of the error over norm of the output, rounded to the dtype


@dataclass(frozen=True)
class Case:
    """A layer: (O, I), (r, c), and how it is used."""

    shape: tuple[int, int] = (192, 128)
    block_shape: tuple[int, int] = (64, 64)
    tokens: int = 17
    dtype: torch.dtype = FP32
    kept: float = 0.5
    empty_rows: bool = False
    bias: bool = True
    gelu: bool = False
    device: str = "cpu"


def relative_error(case: Case) -> float:
    """Of the kernel's output against the masked dense layer in float64."""
    from lpvit.sparse.triton_kernel import block_sparse_linear

    generator = torch.Generator().manual_seed(0)
    (out_features, in_features), (height, width) = case.shape, case.block_shape
    rows, columns = -(-out_features // height), -(-in_features // width)
    keep_mask = torch.rand(rows, columns, generator=generator) < case.kept
    if case.empty_rows:
        keep_mask[::2] = False
    weight = torch.zeros(rows * height, columns * width)
    weight[:out_features, :in_features] = torch.randn(case.shape, generator=generator)
    blocks = weight.to(case.dtype).view(rows, height, columns, width).transpose(1, 2) * keep_mask[:, :, None, None]
    masked = blocks.transpose(1, 2).reshape(weight.shape)[:out_features, :in_features]
    x = torch.randn(case.tokens, in_features, generator=generator).to(case.dtype)
    bias = torch.randn(out_features, generator=generator).to(case.dtype) if case.bias else None

    expected = torch.nn.functional.linear(x.double(), masked.double(), None if bias is None else bias.double())
    if case.gelu:
        expected = torch.nn.functional.gelu(expected)
    parts = (blocks[keep_mask], counts_before(keep_mask), keep_mask.nonzero()[:, 1].to(torch.int32))
    place = guarded if case.device == "cpu" else torch.Tensor.cuda
    x, values, crow_indices, col_indices = (place(tensor) for tensor in (x, *parts))
    bias = None if bias is None else bias.to(case.device)
    outputs = block_sparse_linear(x, values, crow_indices, col_indices, bias, out_features, case.gelu)
    assert outputs.shape == expected.shape
    assert outputs.dtype == case.dtype
    return float((outputs.cpu().double() - expected).norm() / expected.norm().clamp_min(1e-30))


def guarded(tensor: Tensor) -> Tensor:
    """A copy whose end is the end of readable memory: the process dies of a read past it."""
    if tensor.numel() == 0:
        return tensor
    readable = -(-tensor.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    region = mmap.mmap(-1, readable + mmap.PAGESIZE)
    guard = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(region)) + readable)
    assert ctypes.CDLL(None).mprotect(guard, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    copy = torch.frombuffer(region, dtype=tensor.dtype, count=tensor.numel(), offset=readable - tensor.nbytes)
    return copy.view(tensor.shape).copy_(tensor)


def counts_before(keep_mask: Tensor) -> Tensor:
    return torch.nn.functional.pad(keep_mask.sum(1).cumsum(0), (1, 0)).to(torch.int32)


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Executor]:
    """A process of its own: Triton reads its mode when it is imported, and other tests must not inherit it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with mock.patch.dict(os.environ, TRITON_INTERPRET="1"):
            pool.submit(torch.set_num_threads, 1).result()
        yield pool


SHAPES = [(8, 8), (16, 16), (32, 32), (64, 64), (32, 64), (64, 32), (128, 64), (24, 48)]


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16], ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("block_shape", SHAPES, ids=lambda sides: f"{sides[0]}x{sides[1]}")
def test_kernel_equals_the_masked_dense_layer(
    interpreter: Executor, block_shape: tuple[int, int], dtype: torch.dtype
) -> None:
    even = Case((2 * block_shape[0], 4 * block_shape[1]), block_shape, dtype=dtype)
    ragged = Case((2 * block_shape[0] + 3, 3 * block_shape[1] + 5), block_shape, tokens=33, dtype=dtype, gelu=True)
    assert interpreter.submit(relative_error, even).result() < TOLERANCE[dtype]
    assert interpreter.submit(relative_error, ragged).result() < TOLERANCE[dtype]


@pytest.mark.parametrize("tokens", [0, 1, 17, 64])
@pytest.mark.parametrize("block_shape", [(64, 64), (24, 48)], ids=["64x64", "24x48"])
@pytest.mark.parametrize(
    "case",
    [
        Case(kept=0.0),
        Case(kept=0.0, bias=False),
        Case(kept=0.0, gelu=True),
        Case(kept=1.0),
        Case(kept=1.0, empty_rows=True, gelu=True),
        Case(bias=False, gelu=True),
    ],
    ids=["all pruned", "all pruned, no bias", "all pruned, gelu", "all kept", "empty rows", "no bias, gelu"],
)
def test_kernel_at_its_edges(interpreter: Executor, case: Case, block_shape: tuple[int, int], tokens: int) -> None:
    case = replace(case, tokens=tokens, block_shape=block_shape)
    assert interpreter.submit(relative_error, case).result() < TOLERANCE[case.dtype]


def test_only_kept_blocks_of_transposed_inputs_are_read(interpreter: Executor) -> None:
    assert interpreter.submit(outputs_of_ones_among_nan).result() == [[8.0] * 8, [4.0] * 8]


def outputs_of_ones_among_nan() -> list[list[float]]:
    """First token of two layers with one 8x8 block of ones, at columns 8 to 15; the second layer ends at column 12."""
    from lpvit.sparse.triton_kernel import block_sparse_linear

    outputs = []
    for in_features in (32, 12):
        x = torch.full((in_features, 2), float("nan"))
        x[8:16, 0] = 1.0
        weight = torch.ones(1, 8, 8)
        weight[:, :, in_features - 8 :] = 0.0
        crow_indices, col_indices = (torch.tensor(list(ints), dtype=torch.int32) for ints in ((0, 1), (1,)))
        outputs.append(block_sparse_linear(x.t(), weight, crow_indices, col_indices, None, 8, False)[0].tolist())
    return outputs


def test_inputs_on_a_cpu_are_refused_outside_the_interpreter() -> None:
    from lpvit.errors import LpvitError

    with pytest.raises(LpvitError, match="inputs are on 'cpu'"):
        relative_error(Case())


@pytest.mark.parametrize("block_shape", [(64, 64), (32, 32)], ids=lambda sides: f"{sides[0]}x{sides[1]}")
def test_compiled_for_hopper_it_feeds_tensor_cores_by_wide_pipelined_copies_without_spills(
    block_shape: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled = compile_for_hopper(block_shape, tile_m=128, tile_k=64, warps=4, stages=4)
    assert f"wgmma.mma_async.sync.aligned.m64n{block_shape[0]}k16.f32.bf16.bf16" in compiled.asm["ptx"]
    assert "memdesc<4x128x64xbf16" in compiled.asm["ttgir"], "inputs are not staged at full depth"
    widths = set(re.findall(r"cp\.async\.\w+\.shared\.global \[.*?\], \[.*?\], (\w+)", compiled.asm["ptx"]))
    assert widths == {"0x10"}, "copies are not 16 bytes wide"
    assert "STACK:0" in resources(compiled.asm["cubin"], tmp_path)


def compile_for_hopper(block_shape: tuple[int, int], tile_m: int, tile_k: int, warps: int, stages: int):
    """The kernel as `block_sparse_linear` starts it for a bf16 layer of DeiT with bias and GELU, without a GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lpvit.sparse.triton_kernel import _constants, _kernel

    names = _kernel.fn.arg_names
    constants = _constants(BF16, 768, block_shape, gelu=True) | {"tile_m": tile_m, "tile_k": tile_k}
    types = dict.fromkeys(names, "i32") | dict.fromkeys(("inputs", "values", "bias", "outputs"), "*bf16")
    types |= dict.fromkeys(("crow_indices", "col_indices"), "*i32") | dict.fromkeys(constants, "constexpr")
    unaligned = {"tokens", "tokens_bucket", *constants}
    aligned = {(number,): [["tt.divisibility", 16]] for number, name in enumerate(names) if name not in unaligned}
    source = ASTSource(_kernel.fn, types, constants, aligned)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def resources(cubin: bytes, folder: Path) -> str:
    """Registers, stack (where spilled registers go) and shared memory, as the tool that comes with Triton tells."""
    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    tool = triton.knobs.nvidia.cuobjdump.path
    return subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True).stdout


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["ieee", "tf32", "fp16", "bf16"])
@pytest.mark.parametrize("block_shape", [(16, 16), (32, 32), (64, 64), (128, 64)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_kernel_equals_the_masked_dense_layer_at_the_shapes_of_deit_b_on_a_gpu(
    block_shape: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype = {"fp16": FP16, "bf16": BF16}.get(precision, FP32)
    tolerance = 1e-3 if precision == "tf32" else TOLERANCE[dtype]
    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32" if precision == "tf32" else "ieee")
    for shape in [(2304, 768), (768, 768), (3072, 768), (768, 3072)]:
        for tokens in (197, 8 * 197):
            case = Case(shape, block_shape, tokens, dtype, gelu=shape[0] == 3072, device="cuda")
            assert relative_error(case) < tolerance
