"""Scales of features between factors."""

import copy

import torch
from tiny import dense_model, photographs

from lpvit.models.edits import apply_edit
from lpvit.structures.factors.edit import LowRankLayers
from lpvit.structures.factors.layers import FactorisedLinear
from lpvit.structures.factors.scaling import even_out_features

RANKS = {"patch_embed.proj": 6, "blocks.0.attn.qkv": 5, "blocks.1.mlp.fc2": 7}


@torch.no_grad()
def test_features_between_factors_get_one_mean_square_and_the_model_computes_the_same() -> None:
    model = apply_edit(dense_model("vit").eval(), LowRankLayers(form="plain", ranks=RANKS))
    torch.manual_seed(0)
    for name in RANKS:
        layer = model.get_submodule(name)
        assert isinstance(layer, FactorisedLinear)
        torch.nn.init.normal_(layer.expand.weight)
        for number, row in enumerate(layer.reduce.weight):
            torch.nn.init.normal_(row, std=10.0**-number)
    images, scaled = photographs("vit"), copy.deepcopy(model)
    even_out_features(scaled, images.split(10))
    torch.testing.assert_close(scaled(images), model(images), rtol=1e-4, atol=1e-4)
    found = {}
    for name in RANKS:
        features = 1 if name == "patch_embed.proj" else -1
        scaled.get_submodule(f"{name}.reduce").register_forward_hook(
            lambda _, __, outputs, name=name, features=features: found.update({name: outputs.movedim(features, 0)})
        )
    scaled(images)
    for name, rank in RANKS.items():
        squares = found[name].flatten(1).square().mean(dim=1)
        assert len(squares) == rank
        torch.testing.assert_close(squares, squares.mean().expand(rank), rtol=1e-3, atol=0)


def test_a_model_without_factors_stays_as_it_is_and_is_not_run() -> None:
    model = dense_model("vit")
    before = copy.deepcopy(model.state_dict())
    even_out_features(model, iter([None]))  # type: ignore[list-item]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
