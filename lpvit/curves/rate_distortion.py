"""Rate-distortion curves: what pruning the least salient blocks of one layer does to the output, at every sparsity.

N = images of a batch; K = logits; P = pruned copies of a layer that run side by side; O, I = output and input features
of a layer; R, C = rows and columns of its grid of blocks; B = R * C; S = samples of the block products.
"""

import pandas as pd
import torch
from torch import nn

from lpvit.curves.correction import _first_images, corrected_curves
from lpvit.curves.empirical import empirical_curves
from lpvit.curves.gauss_newton import gauss_newton_curves
from lpvit.curves.settings import Pruning
from lpvit.curves.statistics import Statistics
from lpvit.curves.taylor import taylor_curves
from lpvit.models.layers import matrix_layers, prunable_layers
from lpvit.models.passes import Batches


def rate_distortion_curves(
    statistics: Statistics,
    blocks: pd.DataFrame,
    pruning: Pruning,
    model: nn.Module | None = None,
    loader: Batches | None = None,
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """Curves by the distortion that the settings name.

    Args:
        statistics: From `lpvit.curves.products.statistics_with_products`.
        blocks: Scores, schema ``BLOCKS``.
        pruning: Distortion and its options.
        model: The dense model, where the settings ask for a look at images (``pruning.measures_images``).
        loader: Calibration images, likewise.
        device: Where to measure.

    Returns:
        Schema ``CURVES``.

    Raises:
        LpvitError: As `empirical_curves`.
    """
    if pruning.distortion == "taylor":
        return taylor_curves(statistics, blocks, pruning.order, pruning.points)
    if not pruning.measures_images:
        return gauss_newton_curves(statistics, blocks, pruning.form, pruning.points)
    assert model is not None, "the settings ask for a look at images"
    assert loader is not None, "the settings ask for a look at images"
    layers = prunable_layers(matrix_layers(model), pruning.layers)
    if pruning.distortion == "empirical":
        return empirical_curves(model, loader, layers, blocks, pruning.block_shape, pruning.points, device)
    curves = gauss_newton_curves(statistics, blocks, pruning.form, pruning.points)
    few_images = _first_images(loader, pruning.correction_images)
    return corrected_curves(curves, model, few_images, layers, blocks, pruning.block_shape, device)
