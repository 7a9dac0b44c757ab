"""The Triton kernel: under Triton's interpreter on a CPU, compiled ahead for a Hopper GPU, and on the GPU at hand."""

import ctypes
import mmap
import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
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
    tiling: tuple[int, int, bool, bool] | None = None  # tile_m, tile_k, by boxes, turned; by default what is chosen


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
    with tiled(case.tiling):
        outputs = block_sparse_linear(x, values, crow_indices, col_indices, bias, out_features, case.gelu)
    assert outputs.shape == expected.shape
    assert outputs.dtype == case.dtype
    return float((outputs.cpu().double() - expected).norm() / expected.norm().clamp_min(1e-30))


@contextmanager
def tiled(tiling: tuple[int, int, bool, bool] | None) -> Iterator[None]:
    """With that one in place of a choice."""
    from lpvit.sparse.triton_kernel import _kernel, _tiling

    configs = _kernel.configs
    if tiling is not None:
        tile_m, tile_k, boxes, turned = tiling
        _kernel.configs = [_tiling(tile_m, tile_k, 4, 2, boxes, turned)]
    try:
        yield
    finally:
        _kernel.configs = configs


def int8_mismatch(case: Case) -> tuple[float, float]:
    """Largest errors over the largest output: of sums of whole numbers, and of a layer against `QuantisedLinear`."""
    from lpvit.quantisation.layers import quantise_tokens
    from lpvit.sparse import triton_kernel, triton_quantise
    from lpvit.sparse.int8 import unpack
    from lpvit.sparse.linear import BlockSparseLinear

    torch.manual_seed(0)
    rows, columns = (-(-size // side) for size, side in zip(case.shape, case.block_shape, strict=True))
    linear = torch.nn.Linear(case.shape[1], case.shape[0], bias=case.bias)
    keep_mask = torch.rand(rows, columns) < case.kept
    layer = BlockSparseLinear.from_linear(linear, keep_mask, case.block_shape, case.gelu, "int8")
    x = (torch.randn(case.tokens, case.shape[1]) + 0.3).to(case.dtype)
    whole, scale, zero_point = quantise_tokens(x)
    values, scales, zero_points = triton_quantise.quantise_tokens(x.to(case.device))
    assert torch.equal(values.cpu().float() + 128, whole)
    assert torch.equal(scales.cpu(), scale[:, 0])
    assert torch.equal(zero_points.cpu().float() + 128, zero_point[:, 0])

    layer.to(case.device)
    dense = layer.dense_weight().cpu() / layer.scales.cpu().clamp_min(1e-30)[:, None]
    sums = (whole - zero_point).double() @ dense.round().double().T
    blocks = unpack(layer.values, case.block_shape[1]).contiguous()
    indices = layer.crow_indices, layer.col_indices
    ones = triton_kernel.Scales(torch.ones_like(scales), zero_points, torch.ones_like(layer.scales), layer.row_sums)
    meaning = ones._replace(tokens=scales, outputs=layer.scales)
    with tiled(case.tiling):
        of_ones = triton_kernel.block_sparse_linear_int8(values, blocks, *indices, None, ones, FP32, False)
        outputs = triton_kernel.block_sparse_linear_int8(
            values, blocks, *indices, layer.bias, meaning, case.dtype, case.gelu
        )
    expected = sums.float() * scale * layer.scales.cpu()
    expected = expected if layer.bias is None else expected + layer.bias.cpu()
    expected = torch.nn.functional.gelu(expected) if case.gelu else expected
    largest = expected.abs().max().clamp_min(1e-30)
    return float((of_ones.cpu() - sums).abs().max()), float((outputs.cpu().float() - expected).abs().max() / largest)


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


TILINGS = [(64, 32, True, False), (32, 64, True, True), (32, 32, False, True)]


@pytest.mark.parametrize("tiling", TILINGS, ids=["boxes", "boxes, turned", "by address, turned"])
@pytest.mark.parametrize("block_shape", [(64, 64), (16, 128)], ids=["64x64", "16x128"])
def test_tiles_copied_as_boxes_and_turned_products_give_the_same(
    interpreter: Executor, block_shape: tuple[int, int], tiling: tuple[int, int, bool, bool]
) -> None:
    even = Case((128, 256), block_shape, dtype=BF16, tiling=tiling)
    ragged = Case((131, 248), block_shape, tokens=77, dtype=FP16, gelu=True, empty_rows=True, tiling=tiling)
    unaligned = Case((131, 251), block_shape, tokens=77, dtype=BF16, tiling=tiling)
    for case in (even, ragged, unaligned, replace(even, kept=0.0), replace(even, kept=1.0, bias=False)):
        assert interpreter.submit(relative_error, case).result() < TOLERANCE[case.dtype]


@pytest.mark.parametrize("tiling", [None, *TILINGS], ids=["by address", "boxes", "boxes, turned", "by address, turned"])
@pytest.mark.parametrize("block_shape", [(64, 64), (16, 32), (24, 48), (8, 6)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_sums_in_int8_are_exact(
    interpreter: Executor, block_shape: tuple[int, int], tiling: tuple[int, int, bool, bool] | None
) -> None:
    even = Case((128, 192), block_shape, tokens=33, tiling=tiling)
    ragged = Case((131, 197), block_shape, dtype=BF16, gelu=True, tiling=tiling)
    for case in (even, ragged, replace(even, kept=0.0), replace(even, bias=False, kept=1.0)):
        off, of_meaning = interpreter.submit(int8_mismatch, case).result()
        assert off == 0
        assert of_meaning < TOLERANCE[case.dtype]


def test_tokens_that_are_not_finite_have_no_scale(interpreter: Executor) -> None:
    assert interpreter.submit(scales_of_odd_tokens).result() == [True, False, True, False]


def scales_of_odd_tokens() -> list[bool]:
    """Whether the scale is none: of an infinite token, a zero one, one that is not a number, and a very small one."""
    from lpvit.sparse.triton_quantise import quantise_tokens

    x = torch.randn(4, 70)
    x[0, 3], x[1], x[2, 69], x[3] = torch.inf, 0.0, torch.nan, 1e-35
    return quantise_tokens(x)[1].isnan().tolist()


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
    compiled = compile_for_hopper(block_shape, (128, 64, False, False), warps=4, stages=4)
    assert f"wgmma.mma_async.sync.aligned.m64n{block_shape[0]}k16.f32.bf16.bf16" in compiled.asm["ptx"]
    assert "memdesc<4x128x64xbf16" in compiled.asm["ttgir"], "inputs are not staged at full depth"
    widths = set(re.findall(r"cp\.async\.\w+\.shared\.global \[.*?\], \[.*?\], (\w+)", compiled.asm["ptx"]))
    assert widths == {"0x10"}, "copies are not 16 bytes wide"
    assert "STACK:0" in resources(compiled.asm["cubin"], tmp_path)


@pytest.mark.parametrize(
    ("tiling", "instruction"),
    [((128, 64, True, False), "m64n64k16.f32.bf16.bf16"), ((256, 64, True, True), "m64n256k16.f32.bf16.bf16")],
    ids=["straight", "turned"],
)
def test_compiled_for_hopper_boxes_are_copied_by_its_tensor_memory_accelerator(
    tiling: tuple[int, int, bool, bool], instruction: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled = compile_for_hopper((64, 64), tiling, warps=4, stages=3)
    assert f"wgmma.mma_async.sync.aligned.{instruction}" in compiled.asm["ptx"]
    assert "cp.async.bulk.tensor.2d" in compiled.asm["ptx"]
    assert f"memdesc<3x{tiling[0]}x64xbf16" in compiled.asm["ttgir"], "inputs are not staged at full depth"
    assert "STACK:0" in resources(compiled.asm["cubin"], tmp_path)


def test_compiled_for_hopper_int8_meets_tensor_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled = compile_for_hopper((64, 64), (128, 64, True, True), warps=4, stages=4, dtype=torch.int8)
    assert "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8" in compiled.asm["ptx"]
    assert "STACK:0" in resources(compiled.asm["cubin"], tmp_path)


def compile_for_hopper(
    block_shape: tuple[int, int],
    tiling: tuple[int, int, bool, bool],
    warps: int,
    stages: int,
    dtype: torch.dtype = BF16,
):
    """The kernel as it is started for a layer of DeiT with outputs in bf16, bias and GELU, without a GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lpvit.sparse.triton_kernel import _constants, _kernel, _tiling

    function = _kernel.fn.fn
    names = function.arg_names
    config = _tiling(*tiling[:2], warps, stages, *tiling[2:])
    constants = _constants(dtype, 768, block_shape, gelu=True) | config.kwargs
    element, of_bias = ("bf16", "bf16") if dtype == BF16 else ("i8", "fp32")
    types = dict.fromkeys(names, "i32") | dict.fromkeys(("inputs", "values"), f"*{element}")
    types |= {"bias": f"*{of_bias}", "outputs": "*bf16", "token_scales": "*fp32", "output_scales": "*fp32"}
    types |= dict.fromkeys(("crow_indices", "col_indices", "zero_points", "row_sums"), "*i32")
    if dtype == BF16:
        constants |= dict.fromkeys(("token_scales", "zero_points", "output_scales", "row_sums"))
    boxes = {"input_boxes": tiling[0], "weight_boxes": constants["tile_n"]}
    if tiling[2]:
        types |= {name: f"tensordesc<{element}[{height}, {tiling[1]}]>" for name, height in boxes.items()}
    else:
        constants |= dict.fromkeys(boxes)
    types |= dict.fromkeys(constants, "constexpr")
    unaligned = {"tokens", "tokens_bucket", *boxes, *constants}
    aligned = {(number,): [["tt.divisibility", 16]] for number, name in enumerate(names) if name not in unaligned}
    source = ASTSource(function, types, constants, aligned)
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


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("block_shape", [(32, 32), (64, 64), (128, 64)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_sums_in_int8_are_exact_at_the_shapes_of_deit_b_on_a_gpu(
    block_shape: tuple[int, int], dtype: torch.dtype
) -> None:
    for shape in [(2304, 768), (3072, 768), (768, 3072)]:
        case = Case(shape, block_shape, 8 * 197, dtype, gelu=shape[0] == 3072, device="cuda")
        off, of_meaning = int8_mismatch(case)
        assert off == 0
        assert of_meaning < TOLERANCE[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("tiling", [(128, 64, True, False), (128, 64, True, True), (64, 64, False, True)])
def test_every_way_of_the_kernel_is_exact_on_a_gpu(tiling: tuple[int, int, bool, bool]) -> None:
    if tiling[2] and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("the GPU has no tensor memory accelerator")
    for dtype in (FP16, BF16):
        case = Case((768, 3072), (64, 64), 8 * 197, dtype, device="cuda", tiling=tiling)
        assert relative_error(case) < TOLERANCE[dtype]
        assert relative_error(replace(case, shape=(1000, 1000), tokens=333, gelu=True)) < TOLERANCE[dtype]
