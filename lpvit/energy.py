"""What computing with blocks costs in energy. Plain arithmetic, no torch."""

POWER_TERM_LANES = 16  # input features that the paper's accelerator takes in at once


def power_term(blocks_kept: float, in_features: int) -> float:
    """LPViT's power term of a layer: surviving blocks * in_features / 16 (arXiv 2407.02068, power constraint).

    Args:
        blocks_kept: Blocks that stay.
        in_features: Columns of the weight matrix.

    Returns:
        In block rows: proportional to power, without a physical unit. Pruning lowers it.
    """
    return blocks_kept * in_features / POWER_TERM_LANES
