"""Sums of weights times their averaged gradients.

K = logits; O, I = output and input features of a layer; R, C = rows and columns of its grid of blocks.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from lpvit.structures.blocks.statistics import Statistic

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from lpvit.models.analysis.passes import Batches
    from lpvit.structures.blocks.calibration import StatisticInputs
    from lpvit.structures.blocks.grid import BlockGrid
    from lpvit.structures.calibration import Statistics


class AveragedGradients(Statistic):
    """Sums over the weights of every block, times their gradients averaged over the images (LPViT)."""

    name: Literal["averaged_gradients"] = "averaged_gradients"

    def collect(self, inputs: "StatisticInputs") -> "Statistics":
        gradients = averaged_gradients(inputs.model, inputs.images, list(inputs.grids), inputs.device)
        return {
            layer: gradient_sums(inputs.weight(layer), gradients[layer], grid) for layer, grid in inputs.grids.items()
        }


def averaged_gradients(
    model: "nn.Module", loader: "Batches", layers: Sequence[str], device: "torch.device | str"
) -> dict[str, "Tensor"]:
    r"""Gradient of the mean squared logit, averaged over all images, with the model in evaluation mode.

    .. math:: g = \frac{1}{|X|} \sum_{x \in X} \frac{d}{dW} \frac{1}{K} \sum_k f_k(x; W)^2

    (LPViT, the gradient of its Taylor expansion). Every image has the same weight for any batch size.

    Args:
        model: Dense model; moved to the device, otherwise not modified.
        loader: The images X.
        layers: Names of layers.
        device: Where to compute.

    Returns:
        layer -> (O, I), float64, in squared logits per unit of weight.

    Raises:
        LpvitError: An output or a gradient is not finite; the layer is named.
    """
    import torch
    from torch.func import functional_call

    from lpvit.errors import LpvitError
    from lpvit.models.analysis.passes import evaluation_mode, require_finite_logits
    from lpvit.models.outputs import read
    from lpvit.progress import bar

    model.to(device)
    weights = {f"{layer}.weight": model.get_parameter(f"{layer}.weight").detach().requires_grad_() for layer in layers}
    sums = [torch.zeros_like(weight, dtype=torch.float64, requires_grad=False) for weight in weights.values()]
    images_seen = 0
    with evaluation_mode(model):
        for batch, _ in bar(loader, "averaged gradient", "batch"):
            images = batch.to(device)
            logits = read(model, functional_call(model, weights, (images,)))
            require_finite_logits(logits, model, images)
            loss = logits.square().mean(dim=1).sum()
            for total, gradient in zip(sums, torch.autograd.grad(loss, list(weights.values())), strict=True):
                total.add_(gradient)
            images_seen += len(images)
    gradients = {layer: (total / images_seen).flatten(1) for layer, total in zip(layers, sums, strict=True)}
    for layer, gradient in gradients.items():
        if not gradient.isfinite().all():
            raise LpvitError(
                f"{layer}: its gradient on the calibration images is NaN or infinite; check the dense weights"
            )
    return gradients


def gradient_sums(weight: "Tensor", gradient: "Tensor", grid: "BlockGrid") -> dict[str, "Tensor"]:
    """Sums over the weights w of every block, with their gradients g.

    Args:
        weight: (O, I).
        gradient: (O, I).
        grid: The blocks.

    Returns:
        On the CPU, each (R, C), float64: ``product_sum``, g w; ``squared_product_sum``, (g w)^2;
        ``absolute_product_sum``, abs(g w).
    """
    product = weight.double() * gradient.double()
    terms = {
        "product_sum": product,
        "squared_product_sum": product.square(),
        "absolute_product_sum": product.abs(),
    }
    return {name: grid.reduce(term).cpu() for name, term in terms.items()}
