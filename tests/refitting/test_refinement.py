"""Gradient steps on a whole network: they lower its distortion, or leave things as they were."""

from copy import deepcopy

import pytest
import torch
from tiny import MODELS, photographs
from torch import Tensor, nn

from lpvit.models.sources.timm import create_model
from lpvit.refitting import refinement
from lpvit.refitting.refinement import BlockTarget, refine

LAYERS = ("blocks.0.mlp.fc2", "blocks.1.attn.proj")
Case = tuple[nn.Module, nn.Module, list[tuple[Tensor, Tensor]]]


@pytest.fixture
def case() -> Case:
    """A dense model, one with two disturbed layers, and images."""
    name, options = MODELS["vit"]
    torch.manual_seed(0)
    model = create_model(name, 5, options).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    disturbed = deepcopy(model)
    with torch.no_grad():
        for layer in LAYERS:
            weight = disturbed.get_parameter(f"{layer}.weight")
            weight += 0.03 * torch.randn_like(weight)
    return model, disturbed, [(images, torch.zeros(10)) for images in photographs("vit", 40).double().split(10)]


def targets(model: nn.Module) -> dict[str, BlockTarget]:
    features = model.get_parameter(f"{LAYERS[0]}.weight").shape[0]
    identity, tokens = torch.eye(features, dtype=torch.float64), torch.ones(17, dtype=torch.float64)
    return {
        layer[: len("blocks.0")]: BlockTarget(list(model.get_submodule(layer).parameters()), identity, tokens)
        for layer in LAYERS
    }


@torch.no_grad()
def distortion(model: nn.Module, dense: nn.Module, images: Tensor) -> float:
    return float((model(images) - dense(images)).square().sum(dim=1).mean())


def test_steps_lower_the_distortion_of_images_that_they_have_not_seen(case: Case) -> None:
    model, disturbed, batches = case
    unseen = photographs("vit", 60)[40:].double()
    before = distortion(disturbed, model, unseen)
    refine(model, disturbed, targets(disturbed), batches, 60, "cpu")
    assert distortion(disturbed, model, unseen) < 0.9 * before


def test_what_is_not_trained_stays_as_it_is(case: Case) -> None:
    model, disturbed, batches = case
    states = [deepcopy(each.state_dict()) for each in (model, disturbed)]
    refine(model, disturbed, targets(disturbed), batches, 4, "cpu")
    changed = [
        {name for name, value in each.state_dict().items() if not torch.equal(value, state[name])}
        for each, state in zip((model, disturbed), states, strict=True)
    ]
    assert changed == [set(), {f"{layer}.{kind}" for layer in LAYERS for kind in ("weight", "bias")}]


def test_a_model_that_gets_no_better_on_held_out_images_keeps_its_weights(
    case: Case, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, disturbed, batches = case
    monkeypatch.setattr(refinement, "LEARNING_RATE", 10.0)
    before = deepcopy(disturbed.state_dict())
    refine(model, disturbed, targets(disturbed), batches, 3, "cpu")
    assert all(torch.equal(value, before[name]) for name, value in disturbed.state_dict().items())
    assert "no better on held-out images" in caplog.text


def test_the_same_seed_gives_the_same_model(case: Case) -> None:
    model, disturbed, batches = case
    again = deepcopy(disturbed)
    for each in (disturbed, again):
        refine(model, each, targets(each), batches, 3, "cpu", seed=1)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in disturbed.state_dict().items())


def test_a_model_at_the_target_has_no_error(case: Case) -> None:
    model, _, batches = case
    pair = refinement._Pair(model, deepcopy(model), targets(model), "cpu")
    assert pair.mean_error(batches[0][0]) == 0
