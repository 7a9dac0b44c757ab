r"""Blocks that know of the bias: what a pruned block gave on average, the bias of its layer can give as well.

With the mean :math:`\mu` of a layer's inputs over tokens and images, :math:`W x + b = W (x - \mu) + (b + W \mu)`. A
block is then charged only for what it makes of :math:`x - \mu`, provided that the bias is moved when it goes:

.. math:: c_b = \langle (G_W - G_b \mu^T)_b, W_b \rangle, \qquad b' = b + (W - \tilde W) \mu,

with the gradients :math:`G_W, G_b` of weight and bias of `lpvit.structures.blocks.products`.

O, I = output and input features of a layer; S = images x probes; B = blocks.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from lpvit.models.analysis.layers import LayerSpec, weight_matrix
from lpvit.models.analysis.passes import Batches
from lpvit.moments.gradients import gradient_products, layer_inputs
from lpvit.structures.blocks.grid import BlockGrid

Means = Mapping[str, Tensor]  # layer -> (I,), float64, on the CPU


def input_means(
    model: nn.Module, loader: Batches, layers: Iterable[LayerSpec], device: torch.device | str
) -> dict[str, Tensor]:
    """Mean of what every layer multiplies, over tokens and images; zero for a layer without a bias that could take it.

    Args:
        model: Dense model; moved to the device, otherwise left as it is.
        loader: Calibration images.
        layers: Layers to describe.
        device: Where to compute.

    Returns:
        layer -> (I,), float64, on the CPU.
    """
    sums = {layer.name: torch.zeros(layer.in_features, dtype=torch.float64) for layer in layers}
    counts = dict.fromkeys(sums, 0)
    biased = [layer for layer in sums if model.get_submodule(layer).bias is not None]
    for layer, tokens in layer_inputs(model, loader, biased, device):
        sums[layer] += tokens.flatten(0, 1).sum(dim=0, dtype=torch.float64).cpu()
        counts[layer] += len(tokens.flatten(0, 1))
    return {layer: total / max(1, counts[layer]) for layer, total in sums.items()}


def centred_products(
    model: nn.Module,
    loader: Batches,
    means: Means,
    block_shape: tuple[int, int],
    probes: int,
    device: torch.device | str,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Block products of the layers in ``means`` with centred inputs, otherwise as `products.block_products`.

    Args:
        model: Dense model; moved to the device, otherwise left as it is.
        loader: Calibration images.
        means: From `input_means`.
        block_shape: Rows and columns of a block.
        probes: Random projections of the logits per image.
        device: Where to compute.
        seed: Of the probes.

    Returns:
        layer -> c, shape (S, B), float32, on the CPU, in logits.

    Raises:
        LpvitError: As `products.block_products`.
    """
    weights = {layer: weight_matrix(model.to(device).get_submodule(layer)).detach() for layer in means}
    grids = {layer: BlockGrid((weight.shape[0], weight.shape[1]), block_shape) for layer, weight in weights.items()}
    given = {layer: mean.to(weights[layer]) for layer, mean in means.items()}

    def products(layer: str, gradients: Tensor) -> Tensor:
        of_weight, of_bias = gradients[:, :, :-1], gradients[:, :, -1:]
        return grids[layer].reduce(of_weight.addcmul_(of_bias, -given[layer]).mul_(weights[layer])).flatten(1)

    return gradient_products(model, loader, dict.fromkeys(means, True), products, probes, device, seed)


@torch.no_grad()
def move_biases(parameters: Mapping[str, Tensor], expanded: Mapping[str, Tensor], means: Means) -> None:
    """Lets biases give what the weights that are about to go gave on average, in place.

    Args:
        parameters: Name -> parameter, before it is pruned; a state dict will do.
        expanded: Which weights stay, from `lpvit.structures.blocks.masks.expand_keep_masks`.
        means: From `input_means`; layers without a bias are left alone.
    """
    for name, keep in expanded.items():
        layer = name.removesuffix(".weight")
        bias = parameters.get(f"{layer}.bias")
        if bias is not None and layer in means:
            lost = parameters[name].masked_fill(keep, 0.0).flatten(1)
            bias += (lost.double() @ means[layer].to(lost.device)).to(bias)
