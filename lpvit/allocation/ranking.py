"""The order in which the blocks of a layer are pruned, one for all stages. No torch, so that allocation needs none."""

import pandas as pd


def in_pruning_order(blocks_of_layer: pd.DataFrame) -> pd.DataFrame:
    """The blocks of one layer by rising saliency, as they are pruned; of equals, the first goes first.

    Args:
        blocks_of_layer: Scores of one layer, schema ``BLOCKS``.
    """
    return blocks_of_layer.sort_values("saliency", kind="stable")
