"""Models of other libraries than timm: understood to the last multiply-add, compressed, saved and loaded."""

from pathlib import Path

import pytest
import torch
from libraries import MODELS, QUICK, images, member
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import lpvit
from lpvit.costs.cost import count_macs
from lpvit.models.analysis.layers import prunable_layers
from lpvit.models.analysis.network import analyse
from lpvit.models.outputs import read
from lpvit.models.preparation import prepared
from lpvit.structures.blocks.grid import BlockGrid
from lpvit.structures.blocks.products import block_products

ROLES = ("qkv", "proj", "fc1", "fc2")
BLOCK_SHAPE = (8, 8)

every_class = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.thorough) for name in MODELS]
)


@every_class
def test_a_prepared_model_is_the_same_function_with_the_macs_of_torchs_counter(name: str) -> None:
    model, some = member(name), images(3)
    copy = prepared(model, some)
    assert {*ROLES, "patch_embed"} <= {layer.role for layer in analyse(copy).layers}
    if name == "ViTMAEModel":  # keeps the order of patches, which the model itself draws anew in every pass
        expected, found = model(some).last_hidden_state[:, 0], copy(some).last_hidden_state[:, 0]
    else:
        expected, found = read(copy, model(some)), read(copy, copy(some))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # with gradients: not in one function
        model(some[:1])
    assert count_macs(copy) == counter.get_total_flops() // 2


@every_class
def test_a_block_product_is_the_derivative_of_the_output_along_the_block(name: str) -> None:
    some = images(2).double()
    model = prepared(member(name).double(), some)
    layers = prunable_layers(analyse(model).layers, ROLES)
    probes = read(model, model(some)).shape[1]
    products = block_products(model, [(some, torch.zeros(2))], layers, BLOCK_SHAPE, probes, "cpu")
    for layer in (layers[0], layers[len(layers) // 2], layers[-1]):
        grid = BlockGrid(layer.shape, BLOCK_SHAPE)
        block = torch.zeros(grid.count, dtype=torch.bool)
        block[grid.count // 2] = True
        inside = grid.expand(block.view(grid.rows, grid.columns))
        weight, outputs = model.get_submodule(layer.name).weight.data, []
        for sign in (1, -1):
            original = weight.clone()
            weight += sign * 1e-5 * original * inside.view_as(weight)
            with torch.no_grad():
                outputs.append(read(model, model(some)))
            weight.copy_(original)
        expected = ((outputs[0] - outputs[1]) / 2e-5).square().sum(dim=1)
        found = products[layer.name][:, grid.count // 2].view(2, probes).square().sum(dim=1).double() / probes
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-9)


@every_class
@pytest.mark.parametrize("pruning", [lpvit.Blocks(block_shape=BLOCK_SHAPE), lpvit.Factors()], ids=["blocks", "factors"])
def test_a_model_is_compressed_to_half_saved_and_loaded(name: str, pruning: object, tmp_path: Path) -> None:
    model, some, file = member(name), images(12), tmp_path / "model.safetensors"
    budget = lpvit.Budget(macs=0.5, reconstruction="least_squares")
    pruned = lpvit.prune(model, list(some.split(6)), budget=budget, pruning=pruning)
    report = pruned.report
    assert report.loc["(model)", "macs"] <= 0.5 * report.loc["(dense model)", "macs"]
    lpvit.save(pruned, file)
    library, _ = MODELS[name]
    if library in ("transformers", "torchvision"):
        loaded = lpvit.load(file)
    else:
        with pytest.raises(lpvit.LpvitError, match=r"is yours to build: lpvit\.load\(file, model="):
            lpvit.load(file)
        loaded = lpvit.load(file, model=member(name, std=0.1))
    assert loaded.report.equals(report)
    with torch.no_grad():
        found, expected = read(pruned.model, loaded.model(some)), read(pruned.model, pruned.model(some))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
