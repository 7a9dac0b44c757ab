"""Energy of a layer: an analytic model and the paper's power term. Plain arithmetic, no torch.

The model is separable: the energy of a layer is a constant plus an amount for every kept weight, whichever these are. A
pruned block saves its arithmetic and its weights; the activations of a layer count as dense, even where a whole row or
column of blocks is pruned.

| what | pJ | source |
| --- | --- | --- |
| multiply and add | `lpvit.precisions` | Horowitz, ISSCC 2014, figure 1.1.9 (45 nm, 0.9 V) |
| 64 bits from 8 kB of SRAM | 10 | the same |
| 64 bits from 1 MB of SRAM | 100 | the same |
| 64 bits from DRAM | 1300 to 2600 | the same; the lower end is the default |

On current chips every constant is smaller, but their ratios, which determine an allocation, have changed less.
"""

from lpvit.costs.settings import Energy
from lpvit.precisions import PRECISIONS

HOROWITZ = Energy()
PICOJOULE = 1e-12  # J
POWER_TERM_LANES = 16  # input features that the paper's accelerator processes at once


def energy_per_weight(tokens: int, model: Energy) -> float:
    """Energy of a kept weight for one image.

    ``tokens * (mac + 2 * bytes * buffer / reuse) + bytes * (dram / batch_size + sram)``: a multiply-accumulate for each
    token, whose two operands come from the buffers, and the transfer of the weight to them.

    Args:
        tokens: Vectors that the layer multiplies for an image.
        model: Constants.

    Returns:
        In J per image.
    """
    size = PRECISIONS[model.dtype].bytes
    mac = PRECISIONS[model.dtype].picojoules if model.mac is None else model.mac
    operands = 2 * size * model.buffer / model.reuse
    fetch = size * (model.dram / model.batch_size + model.sram)
    return PICOJOULE * (tokens * (mac + operands) + fetch)


def fixed_energy(out_features: int, in_features: int, tokens: int, model: Energy) -> float:
    """Energy of a layer for one image that does not depend on pruning: its activations.

    ``tokens * (in_features + out_features) * bytes * sram``: inputs are read from and outputs written to the on-chip
    memory, which holds those of one image. Biases are not counted.

    Args:
        out_features: Rows of the weight matrix.
        in_features: Columns of the weight matrix.
        tokens: Vectors that the layer multiplies for an image.
        model: Constants.

    Returns:
        In J per image.
    """
    return PICOJOULE * tokens * (in_features + out_features) * PRECISIONS[model.dtype].bytes * model.sram


def layer_energy(out_features: int, in_features: int, tokens: int, weights: float, model: Energy) -> float:
    """Modelled energy of a layer that keeps some of its weights, in J per image."""
    return fixed_energy(out_features, in_features, tokens, model) + weights * energy_per_weight(tokens, model)


def power_term(blocks_kept: float, in_features: int) -> float:
    """LPViT's power term of a layer: kept blocks * in_features / 16 (arXiv 2407.02068, power constraint).

    Args:
        blocks_kept: Kept blocks.
        in_features: Columns of the weight matrix.

    Returns:
        In block rows: proportional to power, without a physical unit. Pruning lowers it.
    """
    return blocks_kept * in_features / POWER_TERM_LANES
