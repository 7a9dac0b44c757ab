"""The distortion `gauss_newton`: predicted from the gradients of every image.

R, C = rows and columns of a grid of blocks; B = R * C; S = samples of the block products.
"""

from typing import Literal

import pandas as pd
import torch
from torch import Tensor, nn

from lpvit.curves.curve import pruning_ranks, sampled_curve
from lpvit.curves.statistics import Statistics, mean_squared_products

CUMULATIVE_NUMBERS = 2**18  # of running sums held at once: 2 MiB in float64, for the cache


def gauss_newton_curves(
    statistics: Statistics, blocks: pd.DataFrame, form: Literal["cumulative", "diagonal"], points: int
) -> pd.DataFrame:
    """Curves predicted from the gradients of every image, by `gauss_newton_distortion`.

    Args:
        statistics: With the ``block_products`` of every layer, from `lpvit.curves.products.block_products`.
        blocks: Scores, schema ``BLOCKS``.
        form: With or without the interaction of blocks.
        points: Sparsities of a curve, evenly from 0 to 1.

    Returns:
        Schema ``CURVES``.
    """
    curves = []
    for layer, of_layer in blocks.groupby("layer", sort=False):
        products = statistics[str(layer)]["block_products"]
        distortion = gauss_newton_distortion(products, pruning_ranks(of_layer), form)
        curves.append(sampled_curve(of_layer, points, distortion))
    return pd.concat(curves, ignore_index=True)


def gauss_newton_distortion(block_products: Tensor, ranks: Tensor, form: Literal["cumulative", "diagonal"]) -> Tensor:
    r"""Distortion of zeroing the first n blocks of the pruning order, for every n, to first order in the weights.

    With c the block products of a sample (`lpvit.curves.products`) and the mean over the S samples,

    .. math::
        D_{cumulative}(n) = E \Big( \sum_{b \le n} c_b \Big)^2, \qquad D_{diagonal}(n) = \sum_{b \le n} E \, c_b^2.

    The first is an unbiased estimate of the linearised change of the logits. The second leaves out the products of
    different blocks, and with them most of the noise of few samples.

    Args:
        block_products: c, (S, B).
        ranks: Place of every block in the pruning order, (R, C).
        form: Which of the two.

    Returns:
        Shape (B + 1,), float64, in squared logits per image; 0 where nothing is pruned.
    """
    pruned_first = ranks.flatten().argsort()
    if form == "diagonal":
        return nn.functional.pad(mean_squared_products(block_products)[pruned_first].cumsum(dim=0), (1, 0))
    distortion = torch.zeros(len(pruned_first) + 1, dtype=torch.float64)
    for samples in torch.split(block_products, max(1, CUMULATIVE_NUMBERS // len(pruned_first))):
        sums = samples.T[pruned_first].double()
        torch.cumsum(sums, dim=0, out=sums)
        distortion[1:] += torch.linalg.vector_norm(sums, dim=1).square_()
    return distortion / len(block_products)
