"""Every family of transformers that timm has: understood to the last multiply-add, or refused in one line."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from families import FAMILIES, images_for, member
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import lpvit
from lpvit.costs.cost import count_macs
from lpvit.inference.sparsify import sparsify_layers
from lpvit.models.analysis.layers import prunable_layers
from lpvit.models.analysis.network import analyse
from lpvit.models.analysis.passes import CachedPass, StopPoint, run_until
from lpvit.models.sources.families import call_modules
from lpvit.structures.blocks.grid import BlockGrid
from lpvit.structures.blocks.masks import expand_keep_masks, zero_pruned
from lpvit.structures.blocks.products import block_products

ROLES = ("qkv", "proj", "fc1", "fc2")
BLOCK_SHAPE = (8, 8)

every_family = pytest.mark.parametrize("family", FAMILIES)


def prunable(model: nn.Module) -> list:
    return prunable_layers(analyse(model).layers, ROLES)


def random_masks(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    masks = {}
    for layer in prunable(model):
        grid = BlockGrid(layer.shape, BLOCK_SHAPE)
        masks[layer.name] = torch.rand(grid.rows, grid.columns, generator=generator) < 0.6
    return masks


@every_family
def test_layers_are_those_of_the_transformer_blocks(family: str) -> None:
    network = analyse(call_modules(member(family)))
    roles = {layer.role for layer in network.layers}
    assert {"patch_embed", "head", *ROLES} <= roles
    first = next(layer for layer in network.layers if layer.role in ROLES)
    assert all(layer.role == "patch_embed" for layer in network.layers[: network.layers.index(first)])
    assert not any("cpb" in layer.name or "rel_pos" in layer.name for layer in network.layers)


@every_family
def test_macs_are_those_of_torchs_counter(family: str) -> None:
    model = member(family)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images_for(model, 1))
    assert count_macs(call_modules(member(family))) == counter.get_total_flops() // 2


@every_family
def test_a_block_product_is_the_derivative_of_the_logits_along_the_block(family: str) -> None:
    model = call_modules(member(family).double())
    images = images_for(model, 2).double()
    layers = prunable(model)
    products = block_products(model, [(images, torch.zeros(2))], layers, BLOCK_SHAPE, 5, "cpu")
    step = 1e-5
    for layer in (layers[0], layers[len(layers) // 2], layers[-1]):
        grid = BlockGrid(layer.shape, BLOCK_SHAPE)
        block = torch.zeros(grid.count, dtype=torch.bool)
        block[grid.count // 2] = True
        inside = grid.expand(block.view(grid.rows, grid.columns))
        weight = model.get_submodule(layer.name).weight.data
        logits = []
        for sign in (1, -1):
            original = weight.clone()
            weight += sign * step * original * inside.view_as(weight)
            with torch.no_grad():
                logits.append(model(images))
            weight.copy_(original)
        derivative = (logits[0] - logits[1]) / (2 * step)  # (2, 5)
        # as many probes as logits: they are an orthogonal frame, so that squares add up to those of the derivative
        found = products[layer.name][:, grid.count // 2].view(2, 5).square().sum(dim=1)
        expected = derivative.square().sum(dim=1)
        torch.testing.assert_close(found.double() / 5, expected, rtol=2e-4, atol=1e-9)


@every_family
@torch.no_grad()
def test_a_pass_that_resumes_gives_a_layer_the_input_of_a_plain_pass(family: str) -> None:
    model = call_modules(member(family))
    network = analyse(model)
    images = images_for(model, 3)
    seen: dict[str, Tensor] = {}
    layers = [layer.name for layer in prunable_layers(network.layers, ROLES)]
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: seen.update({name: inputs[0].clone()})
        )
        for name in layers
    ]
    model(images)
    expected = dict(seen)
    for hook in hooks:
        hook.remove()
    paused = CachedPass(images)
    for layer in layers:
        found, _, paused = run_until(model, network.resume_points, paused, StopPoint(layer), "cpu")
        torch.testing.assert_close(found, expected[layer], rtol=1e-5, atol=1e-5)


@every_family
@torch.no_grad()
def test_block_sparse_layers_give_the_logits_of_the_masked_model(family: str) -> None:
    model = call_modules(member(family))
    masks = random_masks(model)
    images = images_for(model, 2)
    zero_pruned(model.state_dict(), expand_keep_masks(model, masks, BLOCK_SHAPE))
    expected = model(images)
    fast = deepcopy(model).requires_grad_(False)
    choices = sparsify_layers(fast, masks, BLOCK_SHAPE, only_faster=False)
    assert sum(choice.by_kernel for choice in choices if choice.kind == "layer") == len(masks)
    torch.testing.assert_close(fast(images), expected, rtol=1e-3, atol=1e-3)


@every_family
def test_a_model_is_pruned_reconstructed_saved_and_loaded(family: str, tmp_path: Path) -> None:
    model = member(family)
    images = images_for(model, 12)
    budget = lpvit.Budget(macs=0.7, reconstruction="least_squares")
    pruned = lpvit.prune(model, list(images.split(6)), budget=budget, block_shape=BLOCK_SHAPE)
    report = pruned.report
    assert report.loc["(model)", "macs"] <= 0.7 * report.loc["(dense model)", "macs"]
    lpvit.save(pruned, tmp_path / "pruned.safetensors", options=FAMILIES[family][1])
    loaded = lpvit.load(tmp_path / "pruned.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(images), pruned.model(images), rtol=1e-4, atol=1e-4)
