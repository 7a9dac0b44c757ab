"""Predicted curves, corrected on a few images for the finite size of the change."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lpvit.curves.empirical import empirical_curves
from lpvit.models.layers import LayerSpec
from lpvit.models.passes import Batches

CORRECTION_POINTS = 5  # sparsities at which a curve is corrected: 0, 1/4, ... 1


SMALL_SHARE = 0.05  # of the pruned weights taken away: a change that counts as infinitesimal


def corrected_curves(
    curves: pd.DataFrame,
    model: nn.Module,
    loader: Batches,
    layers: Sequence[LayerSpec],
    blocks: pd.DataFrame,
    block_shape: tuple[int, int],
    device: torch.device | str,
) -> pd.DataFrame:
    r"""Curves of the first order in the weights, corrected for the finite size of the change.

    A few images suffice for the quotient of the distortions of a finite and of an infinitesimal change, since both are
    measured on them (a control variate):

    .. math:: D_{corrected}(\alpha) = D(\alpha) \, \frac{\sum_x \lVert f(x; W) - f(x; W + \Delta W) \rVert^2}
        {\sum_x \lVert f(x; W) - f(x; W + h \Delta W) \rVert^2 / h^2}, \qquad h \ll 1,

    at ``CORRECTION_POINTS`` sparsities; its logarithm is linear in between, and 0 where nothing is pruned.

    Args:
        curves: Schema ``CURVES``, in the order of the layers.
        model: Dense model; moved to the device, otherwise left as it is.
        loader: The few images x.
        layers: Layers of the curves.
        blocks: Scores, schema ``BLOCKS``.
        block_shape: Rows and columns of a block.
        device: Where to compute.

    Returns:
        Schema ``CURVES``.

    Raises:
        LpvitError: As `empirical_curves`.
    """
    finite, small = (
        empirical_curves(model, loader, layers, blocks, block_shape, CORRECTION_POINTS, device, share=share)
        for share in (1.0, SMALL_SHARE)
    )
    known = small["distortion"] > 0
    quotient = (finite["distortion"] / small["distortion"]).where(known & (finite["distortion"] > 0), 1.0)
    corrections = finite.assign(logarithm=np.log(quotient)).groupby("layer", sort=False)
    corrected = curves.copy()
    for layer, at in corrections:
        of_layer = corrected["layer"] == layer
        logarithm = np.interp(corrected.loc[of_layer, "sparsity"], at["sparsity"], at["logarithm"])
        corrected.loc[of_layer, "distortion"] *= np.exp(logarithm)
    return corrected


def _first_images(loader: Batches, count: int) -> list[tuple[Tensor, Tensor]]:
    batches = []
    for images, labels in loader:
        batches.append((images[:count], labels[:count]))
        count -= len(images)
        if count <= 0:
            break
    return batches
