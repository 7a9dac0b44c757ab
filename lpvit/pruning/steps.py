"""Pruning in steps, each on scores and curves of the model that the steps before left.

A curve of the dense model is right near its start and wrong far from it: it knows nothing of how the weights that stay
make up for those that went. In steps, every curve is asked for little, as in gradual magnitude pruning (Zhu and Gupta,
2017), here between calibration and reconstruction, without training.
"""

import logging
from copy import deepcopy
from dataclasses import replace

import pandas as pd
import torch
from torch import nn

from lpvit.allocation.allocate import allocate
from lpvit.allocation.settings import Budget
from lpvit.allocation.tables import LayerTables
from lpvit.models.analysis.layers import matrix_layers, prunable_layers
from lpvit.models.analysis.passes import Batches
from lpvit.progress import labelled
from lpvit.structures.blocks.masks import build_keep_masks
from lpvit.structures.blocks.products import statistics_with_products
from lpvit.structures.blocks.rate_distortion import rate_distortion_curves
from lpvit.structures.blocks.scores import block_table
from lpvit.structures.blocks.settings import Pruning
from lpvit.structures.blocks.weights import pruned_weights

_logger = logging.getLogger(__name__)


def scores_and_curves(
    model: nn.Module, loader: Batches, pruning: Pruning, device: torch.device | str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What an allocation needs to know of a model's blocks.

    Args:
        model: Dense, or with pruned blocks, which score and cost nothing; moved to the device.
        loader: Calibration images.
        pruning: How blocks are scored and curves measured.
        device: Where to compute.

    Returns:
        Schemas ``BLOCKS`` and ``CURVES``.

    Raises:
        LpvitError: A block is larger than a layer, or something is not finite.
    """
    layers = prunable_layers(matrix_layers(model), pruning.layers)
    statistics = statistics_with_products(
        *(model, loader, layers, pruning.block_shape, pruning.probes_used, device), averaged=pruning.averages_gradients
    )
    blocks = block_table(statistics, pruning.saliency)
    return blocks, rate_distortion_curves(statistics, blocks, pruning, model, loader, device)


def before_last_step(
    model: nn.Module,
    loader: Batches,
    pruning: Pruning,
    tables: LayerTables,
    budget: Budget,
    device: torch.device | str,
) -> LayerTables:
    """Takes all steps of a budget but the last, and describes the blocks of what they leave.

    Every step prunes the dense model anew, to masks from the curves that the step before left: blocks that went cost
    nothing there, and so go again, unless an allocator asks less of their layer.

    Args:
        model: Dense; moved to the device, otherwise left as it is.
        loader: Calibration images.
        pruning: How blocks are scored and curves measured.
        tables: Of the dense model's layers.
        budget: Its ``steps`` say how many, its ``reconstruction`` what follows each.
        device: Where to compute.

    Returns:
        With blocks and curves of what the steps left; of one step, those given.

    Raises:
        LpvitError: As `lpvit.allocation.allocate`, `lpvit.refitting.reconstruction` and `scores_and_curves`.
    """
    if budget.steps > 1:
        allocate(tables, budget)  # says at once what cannot be met
    images = None if budget.reconstruction == "none" else loader
    for number, step in enumerate(budget.on_the_way, start=1):
        keep_masks = build_keep_masks(tables.blocks, allocate(tables, step))
        pruned = deepcopy(model)
        with labelled(f"step {number} of {budget.steps}"):
            pruned.load_state_dict(pruned_weights(model, keep_masks, pruning.block_shape, images, device))
            blocks, curves = scores_and_curves(pruned, loader, pruning, device)
        tables = replace(tables, blocks=blocks, curves=curves)
        targets = ", ".join(f"{quantity} {target:.3f}" for quantity, target in step.targets.items())
        _logger.info("step %d of %d: %s", number, budget.steps, targets)
    return tables
