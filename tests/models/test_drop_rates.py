"""Stochastic depth that a recipe sets, against timm's own; and drop rates in saved models."""

from pathlib import Path

import pytest
import timm
import torch
from families import FAMILIES, member
from tiny import MODELS, VIT, dense_model, photographs

import lpvit
from lpvit.models.drop_rates import drop_rates, set_drop_path


@pytest.mark.parametrize("kind", MODELS)
def test_the_rates_rise_as_those_that_timm_sets(kind: str) -> None:
    model = dense_model(kind)
    set_drop_path(model, 0.3)
    assert drop_rates(model) == pytest.approx(drop_rates(dense_model(kind, drop_path_rate=0.3)), rel=1e-4)
    set_drop_path(model, 0.0)
    assert drop_rates(model) == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gets_the_rate_in_its_last_block(family: str) -> None:
    model = member(family)
    set_drop_path(model, 0.3)
    assert max(drop_rates(model).values()) == pytest.approx(0.3)


def test_a_model_without_stochastic_depth_is_refused() -> None:
    with pytest.raises(lpvit.LpvitError, match=r"^recipe: drop_path: Sequential has no stochastic depth; leave the"):
        set_drop_path(torch.nn.Sequential(torch.nn.Linear(2, 2)), 0.1)


@pytest.mark.parametrize("options", [{"drop_path_rate": 0.1}, {"proj_drop_rate": 0.1, "drop_path_rate": 0.2}])
def test_a_saved_model_keeps_its_own_drop_rates(options: dict[str, float], tmp_path: Path) -> None:
    pruned = lpvit.prune(dense_model("vit", **options), photographs("vit").split(8), budget=0.6, block_shape=(8, 4))
    file = tmp_path / "model.safetensors"
    lpvit.save(pruned, file, options=VIT | options)
    rates = drop_rates(lpvit.load(file).model)
    assert rates == pytest.approx(drop_rates(pruned.model))
    assert rates
    with pytest.raises(lpvit.LpvitError, match=r"its arguments as 'options', .* \('blocks.* drops at the rate"):
        lpvit.save(pruned, file, options=VIT)


def test_stochastic_depth_is_saved_without_being_told(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, drop_path_rate=0.2)
    images = [torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))]
    pruned = lpvit.prune(model, images, budget=0.5, pruning=lpvit.Blocks(block_shape=(64, 64)))
    lpvit.save(pruned, tmp_path / "model.safetensors")
    loaded = lpvit.load(tmp_path / "model.safetensors").model
    assert drop_rates(loaded) == pytest.approx(drop_rates(model), rel=1e-4)
