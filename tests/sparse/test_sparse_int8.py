"""Block-sparse linear layers in int8 against whole numbers, in all instruction sets of this machine."""

import copy
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from test_sparse import SHAPES, masked_vit, random_mask
from timm.models.vision_transformer import Block
from tiny import SWIN
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.inference import sparsify as sparse_model
from lpvit.inference.layer_fusion import FusedBlock
from lpvit.inference.sparsify import sparsify_layers
from lpvit.models.analysis.layers import matrix_layers, prunable_layers
from lpvit.models.edits import apply_edit
from lpvit.models.sources.timm import create_model
from lpvit.quantisation.layers import QuantisedLinear, int8_layers, quantise_tokens
from lpvit.quantisation.quantise import quantise_model
from lpvit.quantisation.settings import Quantisation
from lpvit.sparse import BlockSparseLinear, build
from lpvit.sparse.int8 import quantise_weight
from lpvit.sparse.linear import Int8BlockSparseLinear
from lpvit.structures.factors.edit import LowRankLayers

INSTRUCTION_SETS = ["best", "avx512", "avx_vnni", "avx2", "sse", "neon"]


@pytest.fixture(params=INSTRUCTION_SETS)
def _instruction_set(request, monkeypatch) -> Iterator[None]:
    """Each one in turn that this CPU has; the best one again afterwards."""
    build.cpu_kernel.cache_clear()
    if request.param != "best":
        monkeypatch.setenv("LPVIT_INSTRUCTION_SET", request.param)
    if build.cpu_kernel().int8 is None:
        reason = build.cpu_kernel().reason
        monkeypatch.undo()
        build.cpu_kernel.cache_clear()
        build.cpu_kernel()
        pytest.skip(reason)
    yield
    monkeypatch.undo()
    build.cpu_kernel.cache_clear()
    build.cpu_kernel()


def layer_of_whole_numbers(
    shape: tuple[int, int], block_shape: tuple[int, int], sparsity: float, extremes: bool = False
) -> tuple[Tensor, BlockSparseLinear]:
    """A weight of whole numbers, pruned, and its int8 layer with scales of 1, so that outputs are the sums."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randint(-127, 128, shape, generator=generator)
    weight = torch.where(weight < 0, -127, 127) if extremes else weight
    linear = nn.Linear(shape[1], shape[0], bias=False)
    linear.weight.data = weight.float()
    keep_mask = random_mask(shape, block_shape, sparsity)
    layer = BlockSparseLinear.from_linear(linear, keep_mask, block_shape, precision="int8", scales=torch.ones(shape[0]))
    return weight * layer.grid.expand(keep_mask), layer


def whole_inputs(tokens: int, features: int, extremes: bool = False) -> Tensor:
    """Whole numbers that are quantised to themselves: each token has -128 and 127 among them."""
    inputs = torch.randint(-128, 128, (tokens, features), generator=torch.Generator().manual_seed(2))
    inputs = torch.where(inputs < 0, -128, 127) if extremes else inputs
    inputs[:, 0], inputs[:, 1 - features] = -128, 127
    return inputs


@pytest.mark.usefixtures("_instruction_set")
@pytest.mark.parametrize(("shape", "block_shape"), SHAPES)
def test_sums_are_those_of_whole_numbers_to_the_last_bit(shape, block_shape):
    for sparsity in (0.0, 0.5, 1.0):
        weight, layer = layer_of_whole_numbers(shape, block_shape, sparsity)
        for tokens in (1, 13, 43):
            inputs = whole_inputs(tokens, shape[1])
            assert torch.equal(layer(inputs.float()).long(), inputs @ weight.T)


@pytest.mark.usefixtures("_instruction_set")
def test_the_largest_products_do_not_saturate():
    weight, layer = layer_of_whole_numbers((32, 512), (16, 16), 0.0, extremes=True)
    inputs = whole_inputs(20, 512, extremes=True)
    assert (inputs @ weight.T).abs().max() < 2**24  # exact as float32
    assert torch.equal(layer(inputs.float()).long(), inputs @ weight.T)
    weight, layer = layer_of_whole_numbers((32, 512), (16, 16), 0.0, extremes=True)
    inputs = torch.full((3, 512), 127.0)
    inputs[:, :4] = -128
    assert torch.equal(layer(inputs), inputs @ weight.float().T)


@pytest.mark.usefixtures("_instruction_set")
@pytest.mark.parametrize(("shape", "block_shape"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_masked_dense_layer_in_int8(shape, block_shape, dtype):
    for bias, gelu in ((True, False), (False, True), (True, True)):
        torch.manual_seed(1)
        linear = nn.Linear(shape[1], shape[0], bias=bias)
        layer = BlockSparseLinear.from_linear(
            linear, random_mask(shape, block_shape, 0.5), block_shape, gelu, precision="int8"
        )
        inputs = (torch.randn(43, shape[1]) + 0.3).to(dtype)
        storage = (layer.values, layer.scales, layer.row_sums, layer.crow_indices, layer.col_indices, layer.bias)
        arguments = (inputs.float(), *storage, shape[0], block_shape[1], gelu)
        expected = torch.ops.lpvit.masked_dense_linear_int8(*arguments)
        outputs = layer(inputs)
        assert outputs.dtype == dtype
        rounding, of_gelu = (1e-6, 0.0) if dtype == torch.float32 else (2.0**-8, 1.5e-4)
        allowed = rounding * expected.abs() + max(1e-6 * expected.abs().max(), of_gelu * gelu)
        assert ((outputs - expected).abs() <= allowed).all()


@pytest.mark.usefixtures("_instruction_set")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_inputs_are_normalised_before_they_are_quantised(dtype):
    for features in (48, 70):
        torch.manual_seed(1)
        norm = nn.LayerNorm(features, eps=1e-3)
        norm.weight.data, norm.bias.data = torch.rand(features) + 0.5, torch.randn(features)
        layer = BlockSparseLinear.from_linear(
            nn.Linear(features, 32), random_mask((32, features), (16, 6), 0.5), (16, 6), precision="int8"
        )
        inputs = (3 * torch.randn(2, 13, features) + 20).to(dtype)
        expected = layer(norm(inputs.float()))
        layer.take_norm(norm)
        outputs = layer(inputs)
        assert outputs.dtype == dtype
        # A step of two inputs more or less, where the two norms round otherwise.
        allowed = 2.0**-8 * expected.abs() * (dtype == torch.bfloat16) + 0.06 * layer.dense_weight().abs().max()
        assert ((outputs - expected).abs() <= allowed).all()
        exact, in_half = layer.norm_weight, copy.deepcopy(layer).bfloat16()
        assert torch.equal(in_half.norm_weight, exact)
        assert torch.equal(in_half(inputs), outputs)
        assert torch.equal(copy.deepcopy(layer)(inputs), outputs)
        broken = inputs.clone()
        broken[1, 5, 3] = torch.nan
        assert layer(broken)[1, 5].isnan().all()
        assert torch.equal(layer(broken)[0], outputs[0])


@pytest.mark.usefixtures("_instruction_set")
@pytest.mark.parametrize(("shape", "block_shape"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_are_scaled_and_added_to_a_residual(shape, block_shape, dtype):
    torch.manual_seed(1)
    layer = BlockSparseLinear.from_linear(
        nn.Linear(shape[1], shape[0]), random_mask(shape, block_shape, 0.5), block_shape, precision="int8"
    )
    inputs, residual, factors = torch.randn(43, shape[1]), torch.randn(43, shape[0]), torch.randn(shape[0])
    inputs, residual = inputs.to(dtype), residual.to(dtype)
    expected = factors * layer(inputs.float()) + residual.float()
    layer.take_scale(factors)
    rounding = 1e-6 if dtype == torch.float32 else 2.0**-8
    outputs = layer(inputs, residual)
    assert outputs.dtype == dtype
    assert ((outputs - expected).abs() <= rounding * expected.abs() + 2e-6 * expected.abs().max()).all()


def test_quantisation_by_hand():
    quantised, scale, zero_point = quantise_tokens(torch.tensor([[-1.0, 0.0, 4.1], [2.0, 0.5, 5.1], [0.0, 0.0, 0.0]]))
    assert zero_point.tolist() == [[50.0], [0.0], [0.0]]
    assert quantised.tolist() == [[0.0, 50.0, 255.0], [100.0, 25.0, 255.0], [0.0, 0.0, 0.0]]
    assert torch.allclose(scale, torch.tensor([[0.02], [0.02], [0.0]]))
    values, scales = quantise_weight(torch.tensor([[1.27, -0.634], [0.0, 0.0]]))
    assert values.tolist() == [[127, -63], [0, 0]]
    assert torch.allclose(scales, torch.tensor([0.01, 0.0]))
    values, _ = quantise_weight(torch.tensor([[1.27, -0.634]]), torch.tensor([0.005]))
    assert values.tolist() == [[127, -127]]


def test_the_error_is_that_of_eight_bits():
    torch.manual_seed(0)
    linear = nn.Linear(384, 192)
    layer = BlockSparseLinear.from_linear(linear, random_mask((192, 384), (32, 32), 0.5), (32, 32), precision="int8")
    dense = copy.deepcopy(linear)
    dense.weight.data *= layer.grid.expand(random_mask((192, 384), (32, 32), 0.5))
    assert (layer.dense_weight() - dense.weight).abs().max() <= layer.scales.max() / 2 * 1.001
    inputs = torch.randn(100, 384)
    error = (layer(inputs) - dense(inputs)).pow(2).mean() / (dense(inputs) - linear.bias).pow(2).mean()
    assert error < 2e-4


@pytest.mark.usefixtures("_instruction_set")
def test_a_token_that_is_not_finite_gives_no_numbers_and_leaves_the_others_alone():
    _, layer = layer_of_whole_numbers((32, 70), (16, 16), 0.5)
    inputs = torch.randn(16, 70)
    expected = layer(inputs)
    for value in (torch.nan, torch.inf, -torch.inf):
        broken = inputs.clone()
        broken[5, 66] = value
        outputs = layer(broken)
        assert outputs[5].isnan().all()
        assert torch.equal(outputs[:5], expected[:5])
        assert torch.equal(outputs[6:], expected[6:])
    assert layer(torch.zeros(2, 70)).count_nonzero() == 0


def test_two_threads_give_the_bits_that_one_gives():
    _, layer = layer_of_whole_numbers((130, 200), (32, 16), 0.5)
    threads = torch.get_num_threads()
    for tokens in (1, 20, 300):
        inputs = torch.randn(tokens, 200)
        torch.set_num_threads(1)
        expected = layer(inputs)
        torch.set_num_threads(2)
        assert torch.equal(layer(inputs), expected)
        torch.set_num_threads(threads)


def test_state_dict_deepcopy_and_dtype_keep_the_layer():
    _, layer = layer_of_whole_numbers((70, 50), (16, 6), 0.5)
    inputs = torch.randn(9, 50)
    expected = layer(inputs)
    assert torch.equal(copy.deepcopy(layer)(inputs), expected)
    other = BlockSparseLinear.from_linear(
        nn.Linear(50, 70, bias=False), random_mask((70, 50), (16, 6), 0.5, seed=1), (16, 6), precision="int8"
    )
    state = {name: value.contiguous() for name, value in layer.state_dict().items()}
    assert "row_sums" not in state
    for assign in (False, True):
        other.load_state_dict(state, assign=assign)
        assert torch.equal(other(inputs), expected)
    half = copy.deepcopy(layer).bfloat16()
    assert (half.values.dtype, half.scales.dtype) == (torch.int8, torch.float32)
    assert torch.equal(half(inputs), expected)
    assert f"dtype=int8, block_shape=16x6, sparsity=0.489, path={build.cpu_kernel().int8}" in repr(layer)


def test_what_does_not_fit_is_refused():
    _, layer = layer_of_whole_numbers((70, 50), (16, 6), 0.5)
    for inputs in (torch.randn(3, 49), torch.randn(3, 50).double(), torch.ones(3, 50, dtype=torch.int8)):
        with pytest.raises(LpvitError, match="convert the inputs"):
            layer(inputs)
    with pytest.raises(LpvitError, match="no 'int4'; there are float32, bfloat16, int8"):
        BlockSparseLinear.from_linear(nn.Linear(8, 8), torch.ones(1, 1, dtype=torch.bool), (8, 8), precision="int4")
    with pytest.raises(LpvitError, match="may overflow"):
        BlockSparseLinear.from_linear(
            nn.Linear(2**15 + 1, 1), torch.ones(1, 2049, dtype=torch.bool), (1, 16), precision="int8"
        )


def test_the_operator_keeps_the_rules_of_torch():
    _, layer = layer_of_whole_numbers((64, 48), (16, 16), 0.5)
    storage = (layer.values, layer.scales, layer.row_sums, layer.crow_indices, layer.col_indices)
    for inputs in (torch.randn(5, 48), torch.randn(2, 3, 48).bfloat16()):
        for bias, gelu in ((torch.randn(64), True), (None, False)):
            for operator in (torch.ops.lpvit.block_sparse_linear_int8, torch.ops.lpvit.masked_dense_linear_int8):
                around = (torch.rand(48), torch.randn(48), 1e-6, torch.randn(*inputs.shape[:-1], 64).to(inputs))
                for fused in ((), around):
                    torch.library.opcheck(operator.default, (inputs, *storage, bias, 64, 16, gelu, *fused))


def test_a_vit_in_int8_is_near_the_masked_one_eager_compiled_and_exported():
    dense, keep_masks = masked_vit()
    sparse = copy.deepcopy(dense)
    choices = sparsify_layers(sparse, keep_masks, (16, 16), only_faster=False, precision="int8")
    assert sum(isinstance(module, Int8BlockSparseLinear) for module in sparse.modules()) == 8
    of_attention = "int8" if build.cpu_kernel().int8_attention else "float32"
    assert {(choice.kind, choice.precision) for choice in choices if choice.by_kernel} == {
        ("layer", "int8"),
        ("attention", of_attention),
    }
    images = torch.randn(3, 3, 16, 16)
    expected = sparse(images)
    assert (expected - dense(images)).abs().max() < 0.05 * dense(images).abs().max()
    for other in (
        torch.compile(sparse, fullgraph=True, backend="aot_eager"),
        torch.export.export(sparse, (images,)).module(),
        copy.deepcopy(sparse),
    ):
        assert torch.allclose(other(images), expected, atol=1e-5)


def test_int8_layers_without_masks_are_multiplied_by_kernels_with_what_stands_around_them():
    options = {"img_size": 28, "patch_size": 14, "embed_dim": 32, "depth": 2, "num_heads": 2, "init_values": 0.3}
    dense = create_model("vit_small_patch14_dinov2", 5, options).requires_grad_(False)
    ranks = {f"blocks.0.{layer}": 8 for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    dense = apply_edit(dense, LowRankLayers(form="plain", ranks=ranks))
    for parameter in dense.parameters():
        nn.init.normal_(parameter, std=0.3)
    quantised = quantise_model(dense, {}, (1, 1), None, Quantisation(rounding="nearest"), "cpu").requires_grad_(False)
    layers, sparse = int8_layers(quantised), copy.deepcopy(quantised)
    choices = sparsify_layers(sparse, {}, (1, 1), only_faster=False, precision="int8")
    assert [choice.module for choice in choices if choice.kind == "layer"] == layers
    assert {f"{layer}.{part}" for layer in ranks for part in ("reduce", "expand")} < set(layers)
    assert not int8_layers(sparse)
    assert all(type(block) is FusedBlock for block in sparse.blocks)
    first = sparse.blocks[0]
    assert all(isinstance(module, nn.Identity) for module in (first.norm1, first.norm2, first.mlp.act))
    images = torch.randn(3, 3, 28, 28)
    expected = quantised(images)
    assert (sparse(images) - expected).abs().max() < 0.02 * expected.abs().max()


def test_what_stands_around_int8_layers_becomes_a_part_of_them_where_nothing_else_needs_it():
    model, keep_masks = masked_vit()
    model.blocks[1].attn.register_forward_pre_hook(lambda module, arguments: None)
    del keep_masks["blocks.1.mlp.fc1"]
    sparsify_layers(model, keep_masks, (16, 16), only_faster=False, precision="int8")
    first, second = model.blocks
    assert (type(first), type(second)) == (FusedBlock, Block)
    assert isinstance(first.norm1, nn.Identity)
    assert isinstance(first.norm2, nn.Identity)
    assert "after LayerNorm" in repr(first.mlp.fc1)
    assert isinstance(second.norm1, nn.LayerNorm)
    assert isinstance(second.norm2, nn.LayerNorm)
    swin = create_model("swin_tiny_patch4_window7_224", 5, SWIN).requires_grad_(False)
    before, images = copy.deepcopy(swin), torch.randn(3, 3, 32, 32)
    keep_masks = {"layers.0.blocks.0.attn.qkv": random_mask((48, 16), (16, 16), 0.0)}
    keep_masks["layers.0.blocks.0.mlp.fc1"] = random_mask((64, 16), (16, 16), 0.0)
    sparsify_layers(swin, keep_masks, (16, 16), only_faster=False, precision="int8")
    block = swin.layers[0].blocks[0]
    assert (type(block.norm1), type(block.norm2)) == (type(before.layers[0].blocks[0].norm1), nn.Identity)
    assert (swin(images) - before(images)).abs().max() < 0.05 * before(images).abs().max()


def test_layer_scale_and_sums_of_a_dinov2_are_a_part_of_its_layers():
    options = {"img_size": 28, "patch_size": 14, "embed_dim": 32, "depth": 2, "num_heads": 2, "init_values": 0.3}
    dense = create_model("vit_small_patch14_dinov2", 5, options).requires_grad_(False)
    layers = prunable_layers(matrix_layers(dense), ("qkv", "proj", "fc1", "fc2"))
    keep_masks = {layer.name: random_mask(layer.shape, (16, 16), 0.0) for layer in layers}
    joined = copy.deepcopy(dense)
    sparsify_layers(joined, keep_masks, (16, 16), only_faster=False, precision="int8")
    assert [type(block) for block in joined.blocks] == [FusedBlock] * 2
    images = torch.randn(3, 3, 28, 28)
    for block, of_dense in zip(joined.blocks, dense.blocks, strict=True):
        tokens = torch.randn(3, 5, 32)
        change = of_dense(tokens) - tokens
        assert (block(tokens) - of_dense(tokens)).abs().max() < 0.05 * change.abs().max()
    assert (joined(images) - dense(images)).abs().max() < 0.05 * dense(images).abs().max()


def test_a_quantised_layer_keeps_its_whole_numbers_and_scales():
    model, keep_masks = masked_vit()
    for name, module in list(model.named_modules()):
        if name in keep_masks and isinstance(module, nn.Linear):
            quantised = QuantisedLinear.like(module)
            values, scales = quantise_weight(module.weight)
            quantised.store(values, scales * 1.1, module.bias)
            model.set_submodule(name, quantised)
    images = torch.randn(2, 3, 16, 16)
    expected = model(images)
    choices = sparsify_layers(model, keep_masks, (16, 16))
    assert {choice.precision for choice in choices[1:] if choice.kind == "layer"} == {"int8"}
    layers = [module for module in model.modules() if isinstance(module, Int8BlockSparseLinear)]
    assert len(layers) == sum(choice.by_kernel for choice in choices if choice.kind == "layer") > 0
    assert (model(images) - expected).abs().max() <= 2e-3 * expected.abs().max()


def test_the_faster_precision_is_chosen(monkeypatch):
    for faster in ("int8", "float32", "dense"):
        seconds = {"dense": 2e-3, "int8": 2e-3, "float32": 2e-3} | {faster: 1e-3}
        monkeypatch.setattr(sparse_model, "_timed", lambda dense, forms, tokens, seconds=seconds: seconds)
        model, keep_masks = masked_vit()
        choices = [
            choice
            for choice in sparsify_layers(model, keep_masks, (16, 16), precision="int8")[1:]
            if choice.kind == "layer"
        ]
        assert {choice.precision for choice in choices} == {"float32" if faster == "dense" else faster}
        assert {choice.by_kernel for choice in choices} == {faster != "dense"}


def test_a_sparse_vit_works_under_autocast():
    for precision in (None, "int8"):
        dense, keep_masks = masked_vit()
        sparsify_layers(dense, keep_masks, (16, 16), only_faster=False, precision=precision)
        images = torch.randn(3, 3, 16, 16)
        expected = dense(images)
        with torch.autocast("cpu", torch.bfloat16):
            assert (dense(images) - expected).abs().max() < 0.05 * expected.abs().max()


def test_sums_of_every_tile_stay_in_registers(tmp_path: Path) -> None:
    """An inner loop that spills is a third slower, and no other test would notice."""
    found = next(found for found in build.INSTRUCTION_SETS["x86_64"] if found.name == "avx512_vnni")
    sources = [str(build.SOURCES / "kernel.cpp"), "-o", str(tmp_path / "kernel.s")]
    command = [*build._compiler(), *build.FLAGS, *found.flags, *found.definitions(), "-S", *sources]
    if build.platform.machine() != "x86_64" or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no compiler for x86-64")
    functions = (tmp_path / "kernel.s").read_text().split("\n_Z")
    tiles = {size: f for size in range(1, 15) for f in functions if f"multiply_tileILi16ELi2ELi{size}E" in f[:80]}
    assert len(tiles) == 14
    for size, code in tiles.items():
        lines = code.splitlines()
        products = [number for number, line in enumerate(lines) if "vpdpbusd" in line]
        assert len(products) == 2 * size
        assert not [line for line in lines[products[0] : products[-1]] if "(%rsp)" in line or "(%rbp)" in line]
