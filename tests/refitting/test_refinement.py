"""Gradient steps on transformer blocks: they lower the error of the outputs, or leave things as they were."""

from copy import deepcopy

import pytest
import torch
from tiny import MODELS, photographs
from torch import Tensor, nn

from lpvit.models.architecture import create_model
from lpvit.refitting import refinement
from lpvit.refitting.refinement import BlockTarget, refine

BLOCK, LAYER = "blocks.0", "blocks.0.mlp.fc2"


@pytest.fixture
def case() -> tuple[nn.Module, nn.Module, list[tuple[Tensor, Tensor]]]:
    """A dense model, one with a disturbed layer, and images."""
    name, options = MODELS["vit"]
    torch.manual_seed(0)
    model = create_model(name, 5, options).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    disturbed = deepcopy(model)
    with torch.no_grad():
        weight = disturbed.get_parameter(f"{LAYER}.weight")
        weight += 0.03 * torch.randn_like(weight)
    return model, disturbed, [(images, torch.zeros(10)) for images in photographs("vit", 40).double().split(10)]


def target(model: nn.Module) -> BlockTarget:
    features = model.get_parameter(f"{LAYER}.weight").shape[0]
    identity, tokens = torch.eye(features, dtype=torch.float64), torch.ones(17, dtype=torch.float64)
    return BlockTarget(list(model.get_submodule(LAYER).parameters()), identity, tokens)


@torch.no_grad()
def error(model: nn.Module, dense: nn.Module, images: Tensor) -> float:
    outputs: dict[nn.Module, Tensor] = {}
    for each in (model, dense):
        block = each.get_submodule(BLOCK)
        hook = block.register_forward_hook(lambda _, __, output, each=each: outputs.update({each: output}))
        each(images)
        hook.remove()
    return float((outputs[model] - outputs[dense]).square().mean())


def test_steps_lower_the_error_of_a_block_on_images_that_it_has_not_seen(
    case: tuple[nn.Module, nn.Module, list[tuple[Tensor, Tensor]]],
) -> None:
    model, disturbed, batches = case
    unseen = photographs("vit", 60)[40:].double()
    before = error(disturbed, model, unseen)
    refine(model, disturbed, {BLOCK: target(disturbed)}, batches, 60, "cpu")
    assert error(disturbed, model, unseen) < 0.9 * before


def test_what_is_not_trained_stays_as_it_is(
    case: tuple[nn.Module, nn.Module, list[tuple[Tensor, Tensor]]],
) -> None:
    model, disturbed, batches = case
    states = [deepcopy(each.state_dict()) for each in (model, disturbed)]
    refine(model, disturbed, {BLOCK: target(disturbed)}, batches, 4, "cpu")
    changed = [
        {name for name, value in each.state_dict().items() if not torch.equal(value, state[name])}
        for each, state in zip((model, disturbed), states, strict=True)
    ]
    assert changed == [set(), {f"{LAYER}.weight", f"{LAYER}.bias"}]


def test_a_block_that_gets_no_better_on_held_out_images_keeps_its_weights(
    case: tuple[nn.Module, nn.Module, list[tuple[Tensor, Tensor]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, disturbed, batches = case
    monkeypatch.setattr(refinement, "LEARNING_RATE", 10.0)
    before = deepcopy(disturbed.state_dict())
    refine(model, disturbed, {BLOCK: target(disturbed)}, batches, 3, "cpu")
    assert all(torch.equal(value, before[name]) for name, value in disturbed.state_dict().items())
