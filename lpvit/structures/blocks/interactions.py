"""Tests additivity of the layers' distortions, which every allocation with one curve per layer assumes.

L = prunable layers; S = samples of the block products; B = blocks of a layer.
"""

from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor

from lpvit.structures.blocks.grid import KeepMasks


def layer_interactions(block_products: Mapping[str, Tensor], keep_masks: KeepMasks) -> pd.DataFrame:
    r"""Distortion of pruning pairs of layers, to first order in the weights.

    With :math:`C_l = \sum_{b \text{ pruned}} c_b` of layer l, the distortion of the whole model is
    :math:`E (\sum_l C_l)^2 = \sum_{l, m} E\, C_l C_m`. The diagonal is the additive part, the layers' own curves.

    Args:
        block_products: layer -> c, (S, B), from `lpvit.structures.blocks.products.block_products`.
        keep_masks: layer -> (R, C), True where a block is kept.

    Returns:
        Schema ``INTERACTIONS``: all L * L ordered pairs.
    """
    sums = torch.stack(
        [block_products[layer].double() @ (~mask).flatten().double() for layer, mask in keep_masks.items()]
    )
    distortion = (sums @ sums.T / sums.shape[1]).flatten()
    pairs = pd.MultiIndex.from_product([list(keep_masks), list(keep_masks)], names=["layer", "other"])
    return pd.DataFrame({"distortion": distortion.numpy()}, index=pairs).reset_index()
