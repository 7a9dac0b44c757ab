"""Blocks in four rounds with least squares, by laws, on a plain ViT and images that determine its weights."""

from copy import deepcopy

import pytest
import torch
from tiny import dense_model
from torch import Tensor, nn

import lpvit

BLOCK_SHAPE = (8, 4)


def well_conditioned() -> nn.Module:
    """In double precision, with weights of a size that keeps activations and attention apart from saturation."""
    model = dense_model("vit").double()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif "norm" in name and name.endswith("weight"):
            nn.init.ones_(parameter)
        else:
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(96, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pruned(images: Tensor) -> lpvit.Pruned:
    return prune(well_conditioned(), images)


def prune(model: nn.Module, images: Tensor, batch_size: int = 32, budget: float | lpvit.Budget = 0.5) -> lpvit.Pruned:
    return lpvit.prune(model, images.split(batch_size), budget=budget, block_shape=BLOCK_SHAPE)


@torch.no_grad()
def error(pruned: lpvit.Pruned, images: Tensor) -> float:
    return float((pruned.model(images) - well_conditioned()(images)).square().sum(dim=1).mean())


def test_the_batches_of_the_calibration_images_do_not_matter(pruned: lpvit.Pruned, images: Tensor) -> None:
    other = prune(well_conditioned(), images, batch_size=17)
    for layer, mask in pruned.keep_masks.items():
        assert torch.equal(other.keep_masks[layer], mask), layer
    with torch.no_grad():
        torch.testing.assert_close(other.model(images), pruned.model(images), rtol=1e-6, atol=1e-8)


def test_the_number_of_a_hidden_unit_does_not_matter_as_long_as_its_block_is_the_same(
    pruned: lpvit.Pruned, images: Tensor
) -> None:
    model = well_conditioned()
    order = torch.arange(80).view(10, 8).flip(0).flatten()  # blocks of eight units change places
    for block in model.blocks:
        block.mlp.fc1.weight.data, block.mlp.fc1.bias.data = block.mlp.fc1.weight[order], block.mlp.fc1.bias[order]
        block.mlp.fc2.weight.data = block.mlp.fc2.weight[:, order]
    with torch.no_grad():
        torch.testing.assert_close(model(images), well_conditioned()(images))
        torch.testing.assert_close(prune(model, images).model(images), pruned.model(images), rtol=1e-6, atol=1e-8)


def test_refitting_helps_on_images_that_were_not_seen(pruned: lpvit.Pruned, images: Tensor) -> None:
    unseen = torch.randn(images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain = prune(well_conditioned(), images, budget=lpvit.Budget(macs=0.5, steps=4))
    for some in (images, unseen):
        assert error(pruned, some) < 0.7 * error(plain, some)


def test_a_budget_of_everything_gives_the_model_back(images: Tensor) -> None:
    whole = prune(well_conditioned(), images, budget=1.0)
    assert all(bool(mask.all()) for mask in whole.keep_masks.values())
    with torch.no_grad():
        torch.testing.assert_close(whole.model(images), well_conditioned()(images), rtol=1e-6, atol=1e-8)


def test_single_precision_gives_nearly_the_same_model(pruned: lpvit.Pruned, images: Tensor) -> None:
    single = prune(well_conditioned().float(), images.float())
    alike = [float((single.keep_masks[layer] == mask).float().mean()) for layer, mask in pruned.keep_masks.items()]
    assert min(alike) > 0.95
    assert error(doubled(single), images) == pytest.approx(error(pruned, images), rel=0.05)


def doubled(pruned: lpvit.Pruned) -> lpvit.Pruned:
    return lpvit.Pruned(deepcopy(pruned.model).double(), pruned.keep_masks, pruned.block_shape)
