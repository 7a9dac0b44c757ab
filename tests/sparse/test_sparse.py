"""Block-sparse linear layers against masked dense ones."""

import copy
import logging
import re

import pytest
import torch
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.inference import sparsify as sparse_model
from lpvit.inference.sparsify import sparsify_layers
from lpvit.models.analysis.layers import matrix_layers, prunable_layers
from lpvit.models.sources.timm import create_model
from lpvit.sparse import BlockSparseLinear, build, compress, decompress
from lpvit.sparse import operator as sparse_operator
from lpvit.structures.blocks.grid import BlockGrid
from lpvit.structures.blocks.masks import expand_keep_masks, zero_pruned


def random_mask(shape: tuple[int, int], block_shape: tuple[int, int], sparsity: float, seed: int = 0) -> Tensor:
    grid = BlockGrid(shape, block_shape)
    order = torch.randperm(grid.count, generator=torch.Generator().manual_seed(seed))
    return (order >= round(sparsity * grid.count)).view(grid.rows, grid.columns)


def masked_pair(
    shape: tuple[int, int], block_shape: tuple[int, int], keep_mask: Tensor, bias: bool = True, gelu: bool = False
) -> tuple[nn.Module, BlockSparseLinear]:
    """A masked dense layer and its sparse form."""
    torch.manual_seed(1)
    linear = nn.Linear(shape[1], shape[0], bias=bias).requires_grad_(False)
    sparse = BlockSparseLinear.from_linear(linear, keep_mask, block_shape, gelu)
    linear.weight.mul_(BlockGrid(shape, block_shape).expand(keep_mask))
    return nn.Sequential(linear, nn.GELU()) if gelu else linear, sparse


def assert_equal(outputs: Tensor, expected: Tensor) -> None:
    assert outputs.shape == expected.shape
    assert (outputs - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_storage_by_hand():
    weight = torch.tensor([[1, 2, 0, 0, 9], [3, 4, 0, 0, 8], [0, 0, 5, 6, 0]])
    keep_mask = torch.tensor([[True, False, True], [False, True, False]])
    values, crow_indices, col_indices = compress(weight, keep_mask, (2, 2))
    assert values.tolist() == [[[1, 2], [3, 4]], [[9, 0], [8, 0]], [[5, 6], [0, 0]]]
    assert crow_indices.tolist() == [0, 2, 3]
    assert col_indices.tolist() == [0, 2, 1]
    assert crow_indices.dtype == col_indices.dtype == torch.int32
    assert torch.equal(decompress(values, crow_indices, col_indices, BlockGrid((3, 5), (2, 2))), weight)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_storage_is_that_of_torch(share):
    weight = torch.randn(12, 20, dtype=torch.bfloat16)
    keep_mask = torch.rand(3, 4) < share
    masked = weight * BlockGrid((12, 20), (4, 5)).expand(keep_mask)
    blocks = compress(weight, keep_mask, (4, 5))
    crow_indices, col_indices = (indices.long() for indices in blocks[1:])
    assert torch.equal(torch.sparse_bsr_tensor(crow_indices, col_indices, blocks[0], (12, 20)).to_dense(), masked)
    assert torch.equal(decompress(*blocks, BlockGrid((12, 20), (4, 5))), masked)


SHAPES = [
    ((64, 96), (16, 16)),
    ((192, 128), (32, 64)),
    ((70, 50), (8, 8)),
    ((70, 50), (5, 7)),
    ((70, 50), (24, 12)),
    ((130, 200), (64, 32)),
    ((300, 131), (128, 128)),
    ((33, 1000), (33, 3)),
    ((33, 17), (1, 1)),
]


@pytest.fixture
def _fresh_kernel():
    """Lets a test choose the kernel anew, and puts back the best one."""
    build.cpu_kernel.cache_clear()
    yield
    build.cpu_kernel.cache_clear()
    build.cpu_kernel()


@pytest.fixture
def _two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("instruction_set", ["best", "avx2", "sse"])
@pytest.mark.parametrize(("shape", "block_shape"), SHAPES)
@pytest.mark.usefixtures("_fresh_kernel")
def test_equals_the_masked_dense_layer(shape, block_shape, instruction_set, monkeypatch):
    if instruction_set != "best":
        monkeypatch.setenv("LPVIT_INSTRUCTION_SET", instruction_set)
    if build.cpu_kernel().instruction_set is None:
        pytest.skip(build.cpu_kernel().reason)
    for sparsity, gelu in ((0.0, False), (0.5, True), (0.9, False), (1.0, True)):
        dense, sparse = masked_pair(shape, block_shape, random_mask(shape, block_shape, sparsity), gelu=gelu)
        for tokens in (1, 13, 43):
            inputs = torch.randn(tokens, shape[1])
            assert_equal(sparse(inputs), dense.double()(inputs.double()).float())


@pytest.mark.parametrize(("shape", "block_shape"), [*SHAPES, ((40, 5001), (24, 16)), ((12, 70), (10, 6))])
def test_bfloat16_equals_the_masked_dense_layer_but_for_rounding(shape, block_shape):
    for sparsity, bias, gelu in ((0.0, False, False), (0.5, True, True), (0.9, True, False), (1.0, True, True)):
        dense, sparse = masked_pair(shape, block_shape, random_mask(shape, block_shape, sparsity), bias, gelu)
        dense, sparse = dense.bfloat16().double(), sparse.bfloat16()
        for tokens in (1, 13, 43):
            inputs = torch.randn(tokens, shape[1]).bfloat16()
            outputs, expected = sparse(inputs), dense(inputs.double())
            assert outputs.dtype == torch.bfloat16
            rounding = 2.0**-8 if build.cpu_kernel().bfloat16 and block_shape[1] % 2 == 0 else 2.0**-6
            assert ((outputs - expected).abs() <= rounding * expected.abs() + 1e-4 * expected.abs().max()).all()


def test_bfloat16_rounds_ties_to_even_and_keeps_what_is_not_finite():
    if build.cpu_kernel().bfloat16 is None:
        pytest.skip("this CPU has no instructions for bfloat16")
    inputs = torch.tensor([[1.0, 2.0**-8], [1 + 2.0**-7, 2.0**-8], [torch.inf, 1.0], [torch.nan, 1.0]]).bfloat16()
    expected = torch.tensor([1.0, 1 + 2.0**-6, torch.inf, torch.nan]).bfloat16()
    for height in (3, 8, 16):  # vectors of one number, of half a register, of a whole one
        linear = nn.Linear(2, height, bias=False)
        layer = BlockSparseLinear.from_linear(linear, torch.ones(1, 1, dtype=torch.bool), (height, 2)).bfloat16()
        layer.values.fill_(1.0)
        assert torch.equal(layer(inputs).nan_to_num(7.0), expected.nan_to_num(7.0)[:, None].expand(4, height))


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("tokens", [1, 20, 43, 300])
def test_two_threads_give_the_bits_that_one_gives(tokens):
    _, sparse = masked_pair((130, 200), (32, 16), random_mask((130, 200), (32, 16), 0.5))
    inputs = torch.randn(tokens, 200)
    outputs = sparse(inputs)
    torch.set_num_threads(1)
    assert torch.equal(outputs, sparse(inputs))


def test_inputs_deeper_than_one_pass_through_the_cache():
    for block_shape in ((24, 24), (16, 128)):
        dense, sparse = masked_pair((40, 5000), block_shape, random_mask((40, 5000), block_shape, 0.5), gelu=True)
        inputs = torch.randn(20, 5000)
        assert_equal(sparse(inputs), dense(inputs))


def test_what_a_call_leaves_behind_does_not_reach_the_next():
    dense, sparse = masked_pair((32, 50), (16, 16), random_mask((32, 50), (16, 16), 0.0))
    _, deeper = masked_pair((32, 64), (16, 16), random_mask((32, 64), (16, 16), 0.0))
    deeper(torch.full((43, 64), torch.nan))
    assert_equal(sparse(torch.ones(43, 50)), dense(torch.ones(43, 50)))


@pytest.mark.parametrize(("shape", "block_shape"), [*SHAPES, ((40, 5000), (8, 4))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_layer_does_what_stands_around_it_too(shape, block_shape, dtype):
    torch.manual_seed(2)
    norm, factors = nn.LayerNorm(shape[1], eps=1e-3), torch.randn(shape[0])
    norm.weight.data, norm.bias.data = torch.rand(shape[1]) + 0.5, torch.randn(shape[1])
    for gelu in (False, True):
        dense, sparse = masked_pair(shape, block_shape, random_mask(shape, block_shape, 0.5), gelu=gelu)
        dense, sparse = dense.to(dtype), sparse.to(dtype)
        sparse.take_norm(norm)
        if not gelu:
            sparse.take_scale(factors.to(dtype))
        inputs, residual = (3 * torch.randn(43, shape[1]) + 20).to(dtype), torch.randn(43, shape[0]).to(dtype)
        outputs = sparse(inputs, residual)
        expected = dense.double()(norm(inputs.float()).double()) * (1 if gelu else factors.to(dtype)) + residual
        assert outputs.dtype == dtype
        tolerance = 1e-5 if dtype == torch.float32 else 2.0**-6
        assert (outputs - expected).abs().max() <= tolerance * expected.abs().max()
        assert torch.equal(sparse.bfloat16().norm_weight, norm.weight)


def test_gelu_is_the_exact_one_far_into_its_tails():
    sparse = BlockSparseLinear.from_linear(
        nn.Linear(16, 16, bias=False), torch.ones(1, 1, dtype=torch.bool), (16, 16), gelu=True
    )
    sparse.values.copy_(torch.eye(16)[None])
    inputs = torch.linspace(-40, 40, 16 * 1000).view(-1, 16)
    expected = nn.functional.gelu(inputs.double())
    assert (sparse(inputs) - expected).abs().max() < 5e-6
    assert ((sparse(inputs) - expected) / expected)[inputs > 0].abs().max() < 2e-6


def test_inputs_of_any_leading_shape_and_stride():
    dense, sparse = masked_pair((64, 48), (16, 16), random_mask((64, 48), (16, 16), 0.5))
    for inputs in (
        torch.randn(48),
        torch.randn(2, 3, 48),
        torch.randn(48, 7).T,
        torch.randn(4, 96)[:, ::2],
        torch.randn(1, 48).expand(5, 48),
    ):
        assert_equal(sparse(inputs), dense(inputs))
    assert sparse(torch.randn(0, 3, 48)).shape == (0, 3, 64)


def test_rows_without_blocks_give_the_bias():
    keep_mask = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])
    dense, sparse = masked_pair((48, 48), (16, 16), keep_mask)
    outputs = sparse(torch.randn(5, 48))
    assert torch.equal(outputs[:, 16:32], sparse.bias[16:32].expand(5, 16))
    dense, sparse = masked_pair((48, 48), (16, 16), keep_mask, bias=False)
    assert_equal(sparse(torch.ones(5, 48)), dense(torch.ones(5, 48)))


def test_a_gradient_is_refused():
    _, sparse = masked_pair((64, 48), (16, 16), random_mask((64, 48), (16, 16), 0.5))
    inputs = torch.randn(3, 48, requires_grad=True)
    with pytest.raises(LpvitError, match="no gradients"):
        sparse(inputs)
    with torch.no_grad():
        assert not sparse(inputs).requires_grad
    assert list(sparse.parameters()) == []


def test_inputs_that_do_not_fit_are_refused():
    _, sparse = masked_pair((64, 48), (16, 16), random_mask((64, 48), (16, 16), 0.5))
    for inputs in (torch.randn(3, 47), torch.randn(3, 48).double()):
        with pytest.raises(LpvitError, match="convert the inputs"):
            sparse(inputs)
    with pytest.raises(LpvitError, match="keep mask"):
        BlockSparseLinear.from_linear(nn.Linear(48, 64), torch.ones(4, 4, dtype=torch.bool), (16, 16))


def test_state_dict_deepcopy_and_dtype_keep_the_layer():
    dense, sparse = masked_pair((70, 50), (16, 8), random_mask((70, 50), (16, 8), 0.5))
    inputs = torch.randn(9, 50)
    assert_equal(copy.deepcopy(sparse)(inputs), dense(inputs))
    other = BlockSparseLinear.from_linear(nn.Linear(50, 70), random_mask((70, 50), (16, 8), 0.5, seed=1), (16, 8))
    state = {name: value.contiguous() for name, value in sparse.state_dict().items()}
    for assign in (False, True):
        other.load_state_dict(state, assign=assign)
        assert_equal(other(inputs), dense(inputs))
    half = sparse.to(torch.bfloat16)
    assert half.values.dtype == torch.bfloat16
    assert half.crow_indices.dtype == torch.int32
    assert (half(inputs.bfloat16()) - dense(inputs)).abs().max() < 0.05
    assert_equal(half.double()(inputs.double()), dense.bfloat16().double()(inputs.double()))


def test_a_damaged_state_dict_is_refused():
    _, sparse = masked_pair((64, 48), (16, 16), random_mask((64, 48), (16, 16), 0.5))
    for name, place, value in (("col_indices", 0, 3), ("col_indices", -1, -1), ("crow_indices", 1, 99)):
        state = copy.deepcopy(sparse.state_dict())
        state[name][place] = value
        with pytest.raises(LpvitError, match="damaged"):
            copy.deepcopy(sparse).load_state_dict(state)


def test_repr_says_what_runs():
    _, sparse = masked_pair((64, 48), (32, 16), random_mask((64, 48), (32, 16), 0.5))
    assert f"block_shape=32x16, sparsity=0.500, path={build.cpu_kernel().instruction_set}" in repr(sparse)
    assert "path=masked dense (no kernel for float16 on 'cpu')" in repr(sparse.half())


@pytest.mark.usefixtures("_fresh_kernel")
def test_repr_says_what_bfloat16_needs(monkeypatch):
    _, sparse = masked_pair((64, 48), (32, 16), random_mask((64, 48), (32, 16), 0.5))
    _, odd = masked_pair((64, 48), (32, 3), random_mask((64, 48), (32, 3), 0.5))
    if (name := build.cpu_kernel().bfloat16) is not None:
        assert f"path={name})" in repr(sparse.bfloat16())
        assert "path=masked dense (no kernel for blocks of 3 columns, an odd number, in bfloat16)" in repr(
            odd.bfloat16()
        )
    build.cpu_kernel.cache_clear()
    monkeypatch.setenv("LPVIT_INSTRUCTION_SET", "sse")
    if build.cpu_kernel().instruction_set == "sse":
        assert "path=masked dense ('sse' has no kernel for bfloat16)" in repr(sparse.bfloat16())
        inputs = torch.randn(5, 48).bfloat16()
        assert torch.equal(sparse(inputs), nn.functional.linear(inputs, sparse.dense_weight(), sparse.bias))


def test_the_operator_keeps_the_rules_of_torch():
    _, sparse = masked_pair((64, 48), (16, 16), random_mask((64, 48), (16, 16), 0.5))
    storage = (sparse.values, sparse.crow_indices, sparse.col_indices)
    for inputs in (torch.randn(5, 48), torch.randn(2, 3, 48)):
        for bias, gelu in ((sparse.bias, True), (None, False)):
            for operator in (torch.ops.lpvit.block_sparse_linear, torch.ops.lpvit.masked_dense_linear):
                around = (torch.rand(48), torch.randn(48), 1e-6, torch.randn(*inputs.shape[:-1], 64))
                for fused in ((), around):
                    torch.library.opcheck(operator.default, (inputs, *storage, bias, 64, gelu, *fused))


@pytest.mark.usefixtures("_fresh_kernel")
def test_without_a_compiler_the_masked_dense_layer_runs_and_the_log_says_why(monkeypatch, tmp_path, caplog):
    dense, sparse = masked_pair((64, 48), (16, 16), random_mask((64, 48), (16, 16), 0.5))
    monkeypatch.setenv("LPVIT_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    sparse_operator.log_once.cache_clear()
    inputs = torch.randn(5, 48)
    arguments = (inputs, sparse.values, sparse.crow_indices, sparse.col_indices, sparse.bias, 64, False)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert_equal(sparse_operator._linear_without_kernel(*arguments), dense(inputs))
    assert caplog.text.count("no C++ compiler 'no-such-compiler'") == 1
    assert "path=masked dense (no C++ compiler" in repr(sparse)


@pytest.mark.usefixtures("_fresh_kernel")
def test_a_compiler_that_fails_is_named_with_its_first_error(monkeypatch, tmp_path):
    monkeypatch.setenv("LPVIT_CACHE", str(tmp_path))
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'error: no space left' >&2; exit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert build.cpu_kernel().reason == "the C++ compiler failed: error: no space left"
    assert [path.name for path in tmp_path.iterdir()] == ["c++"]


IMAGE = {"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 2}


def masked_vit() -> tuple[nn.Module, dict[str, Tensor]]:
    """A small ViT with half of its blocks pruned, the patch embedding's too."""
    model = create_model("vit_tiny_patch16_224", 10, IMAGE).requires_grad_(False)
    layers = prunable_layers(matrix_layers(model), ["qkv", "proj", "fc1", "fc2", "patch_embed"])
    keep_masks = {layer.name: random_mask(layer.shape, (16, 16), 0.5, seed) for seed, layer in enumerate(layers)}
    zero_pruned(dict(model.named_parameters()), expand_keep_masks(model, keep_masks, (16, 16)))
    return model, keep_masks


def test_a_sparse_vit_equals_the_masked_one_eager_compiled_and_exported():
    dense, keep_masks = masked_vit()
    sparse = copy.deepcopy(dense)
    choices = sparsify_layers(sparse, keep_masks, (16, 16), only_faster=False)
    assert [choice.module for choice in choices if not choice.by_kernel] == ["patch_embed.proj"]
    assert sum(isinstance(module, BlockSparseLinear) for module in sparse.modules()) == 8
    assert not any(isinstance(module, nn.GELU) for module in sparse.modules())
    images = torch.randn(3, 3, 16, 16)
    expected = dense(images)
    assert_equal(sparse(images), expected)
    assert_equal(torch.compile(sparse, fullgraph=True, backend="aot_eager")(images), expected)
    assert_equal(torch.export.export(sparse, (images,)).module()(images), expected)


def test_a_sparse_vit_in_bfloat16_equals_the_masked_one_but_for_rounding():
    dense, keep_masks = masked_vit()
    sparse = copy.deepcopy(dense).bfloat16()
    sparsify_layers(sparse, keep_masks, (16, 16), only_faster=False)
    images = torch.randn(2, 3, 16, 16)
    expected, outputs = dense(images), sparse(images.bfloat16()).float()
    in_bfloat16 = dense.bfloat16()(images.bfloat16()).float()
    largest = expected.abs().max()
    assert (outputs - expected).abs().max() <= max(2 * (in_bfloat16 - expected).abs().max(), 1e-2 * largest)
    assert (outputs - expected).abs().max() <= 0.05 * largest


def test_inductor_compiles_the_layer_whole():
    dense, sparse = masked_pair((64, 48), (16, 16), random_mask((64, 48), (16, 16), 0.5))
    inputs = torch.randn(2, 5, 48)
    with torch.no_grad():
        assert_equal(torch.compile(sparse, fullgraph=True)(inputs), dense(inputs))


def test_layers_that_are_not_faster_stay_dense_and_are_named(monkeypatch, caplog):
    model, keep_masks = masked_vit()
    seconds = {"qkv": (2e-3, 1e-3), "proj": (1e-3, 2e-3)}

    def timed(dense, forms, tokens):
        return dict(zip(("dense", "float32"), seconds["qkv" if forms[0].out_features == 144 else "proj"], strict=True))

    monkeypatch.setattr(sparse_model, "_timed", timed)
    with caplog.at_level(logging.INFO):
        choices = sparsify_layers(model, keep_masks, (16, 16))
    layers = [choice for choice in choices if choice.kind == "layer"]
    assert [choice.module for choice in layers if choice.by_kernel] == ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]
    stays = r"blocks.0.attn.proj, \d\d% pruned, is not replaced: 2.000 ms by our kernel, 1.000 ms without it"
    assert re.search(stays, caplog.text)
    assert isinstance(model.blocks[0].mlp.act, nn.GELU)


def test_a_layer_becomes_sparse_exactly_when_it_was_measured_to_be_faster():
    model, keep_masks = masked_vit()
    choices = sparsify_layers(model, keep_masks, (16, 16), batch_size=2)
    for choice in choices[1:]:
        assert choice.by_kernel == (choice.kernel_seconds < choice.torch_seconds)


def test_gelu_is_fused_only_where_it_is_exact_and_follows_directly():
    model, keep_masks = masked_vit()
    model.blocks[0].mlp.act = nn.GELU(approximate="tanh")
    expected = model(torch.ones(1, 3, 16, 16))
    sparsify_layers(model, keep_masks, (16, 16), only_faster=False)
    assert not model.blocks[0].mlp.fc1.gelu
    assert model.blocks[1].mlp.fc1.gelu
    assert_equal(model(torch.ones(1, 3, 16, 16)), expected)


@pytest.mark.gpu
def test_a_gpu_gives_what_the_cpu_gives():
    dense, sparse = masked_pair((192, 128), (64, 32), random_mask((192, 128), (64, 32), 0.5), gelu=True)
    inputs = torch.randn(70, 128)
    on_gpu = copy.deepcopy(sparse).cuda().half()
    assert on_gpu.values.is_contiguous()
    assert (on_gpu(inputs.cuda().half()).cpu() - dense(inputs)).abs().max() < 0.01
    assert (on_gpu.cpu().float()(inputs) - dense(inputs)).abs().max() < 0.01
