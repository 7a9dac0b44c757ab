"""Scales of the features between two factors, which are free: for int8 with one scale for all of them.

r = rank.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lpvit.models.analysis.trace import hooks
from lpvit.structures.factors.layers import FactorisedLinear


@torch.no_grad()
def even_out_features(model: nn.Module, images: Iterable[Tensor]) -> None:
    """Scales all features between factors to one mean square on some images, in place; the model computes the same.

    Features of a truncation fall off like its singular values, so that one scale for all of them rounds most to zero.

    Args:
        model: Layers that are not `FactorisedLinear` stay as they are.
        images: Batches (N, channels, height, width).
    """
    layers = [module for module in model.modules() if isinstance(module, FactorisedLinear)]
    sums = [torch.zeros(len(layer.reduce.weight), dtype=torch.float64) for layer in layers]

    def add(place: int, features: Tensor) -> None:
        by_feature = features.movedim(1 if isinstance(layers[place].reduce, nn.Conv2d) else -1, 0).flatten(1)
        sums[place] += by_feature.double().square().sum(dim=1).cpu()

    handles = [
        layer.reduce.register_forward_hook(lambda _, __, features, place=place: add(place, features))
        for place, layer in enumerate(layers)
    ]
    with hooks(handles):
        for batch in images if layers else ():
            model(batch)
    for layer, squares in zip(layers, sums, strict=True):
        size = (squares / squares.mean().clamp_min(1e-300)).clamp_min(1e-12).sqrt().to(layer.reduce.weight)
        layer.reduce.weight /= size.view(-1, *[1] * (layer.reduce.weight.ndim - 1))
        layer.expand.weight *= size.view(1, -1, *[1] * (layer.expand.weight.ndim - 2))
