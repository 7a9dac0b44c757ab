r"""Products of rank-one parts of a weight change: contributions to random projections of the logits, image by image.

A change of the weight as a sum of parts, :math:`\Delta W = \sum_i a_i b_i^T`, with the mean mu of the inputs
compensated by the bias, changes a projection of the logits of an image, to first order, by the sum of

.. math:: c_i = \sum_t (g_t \cdot a_i) (b_i \cdot (x_t - \mu)).

The mean of c c^T over images and probes gives the distortion of omitting any set M of parts,
:math:`\delta(M) = \sum_{i, j \in M} E c_i c_j`, including products across tokens and dependence of g and x.

N = images of a batch; T = tokens of an image in a layer; O, I = output and input features of a layer; R = parts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.models.analysis.passes import Batches, evaluation_mode
from lpvit.moments.gradients import in_parts, layer_gradients
from lpvit.progress import bar


@dataclass(frozen=True)
class Parts:
    """Rank-one parts of a change of a layer's weight.

    Attributes:
        left: a, as columns (O, R).
        right: b, as rows (R, I).
        mean: Subtracted from the inputs, because the bias compensates for it, (I,).
    """

    left: Tensor
    right: Tensor
    mean: Tensor

    def products(self, inputs: Tensor, gradients: Tensor) -> Tensor:
        """The c of images, (N, R), in logits, from their inputs (N, T, I) and gradients (N, T, O)."""
        wide = torch.promote_types(inputs.dtype, torch.float32)
        inputs, gradients = inputs.to(wide), gradients.to(wide)
        left, right, mean = (tensor.to(inputs) for tensor in (self.left, self.right, self.mean))
        return ((gradients @ left) * ((inputs - mean) @ right.T)).sum(dim=1)


def part_moments(
    model: nn.Module,
    loader: Batches,
    parts: Mapping[str, Parts],
    probes: int,
    device: torch.device | str,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Mean of c c^T over images and probes, accumulated over batches: 8 bytes * R^2 per layer for any number of images.

    Args:
        model: Dense model; moved to the device, otherwise not modified.
        loader: Calibration images.
        parts: Of every layer that is described; each runs once in a forward pass.
        probes: Random projections v of the logits per image.
        device: Where to compute.
        seed: Of the probes, which depend neither on the batches nor on the device.

    Returns:
        layer -> (R, R), float64, on the device, in squared logits per image.

    Raises:
        LpvitError: There are no images, or an output or a product is not finite.
    """
    model.to(device)
    generator = torch.Generator().manual_seed(seed)
    images, layers = 0, list(parts)
    sums: dict[str, Tensor] = {}
    with evaluation_mode(model):
        for batch in in_parts(model, bar(loader, "products of parts", "batch"), layers, device):
            images += len(batch)
            for layer, inputs, gradients in layer_gradients(model, batch, layers, probes, generator):
                products = parts[layer].products(inputs, gradients).double()
                sums[layer] = sums.get(layer, 0) + products.T @ products
    if not sums:
        raise LpvitError("calibration: there are no images")
    for layer, summed in sums.items():
        if not summed.isfinite().all():
            raise LpvitError(
                f"{layer}: the products of its parts on the calibration images are NaN or infinite; check the dense "
                "weights"
            )
    return {layer: sums[layer] / (images * probes) for layer in layers}


def distortion_of_tails(moments: Tensor) -> Tensor:
    r"""Distortion of keeping the first r parts, :math:`\delta_r = E (\sum_{i \ge r} c_i)^2`, for r = 0 .. R.

    Args:
        moments: E c c^T, (R, R).

    Returns:
        (R + 1,), in squared logits per image; 0 where all are kept.
    """
    tails = moments.flip(0, 1).cumsum(0).cumsum(1).diagonal().flip(0)
    return nn.functional.pad(tails, (0, 1)).clamp_min(0)
