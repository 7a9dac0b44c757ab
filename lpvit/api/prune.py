"""Pruning in one call, with the functions of the workflow.

N = images of a batch.
"""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from lpvit.allocation.feasibility import Shapes
from lpvit.allocation.latency import read_latency
from lpvit.allocation.settings import LATENCY_BATCH_SIZE, Budget
from lpvit.api.batches import UserBatches
from lpvit.api.pruned import Pruned
from lpvit.costs.cost import measure_costs
from lpvit.errors import LpvitError
from lpvit.inference.layer_latency import measure_latency
from lpvit.models.analysis.layers import matrix_layers
from lpvit.models.analysis.network import analyse, require_plain_module
from lpvit.models.sources.families import call_modules
from lpvit.pruning.prune import prune as prune_to_budget
from lpvit.structures.blocks.settings import Blocks
from lpvit.structures.blocks.structure import BlockStructure
from lpvit.structures.settings import StructureSettings

STEPS = 4  # pruning rounds for a budget given as a number


def prune(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    budget: float | Budget,
    block_shape: tuple[int, int] | None = None,
    pruning: StructureSettings | None = None,
) -> Pruned:
    """Prunes a timm model (ViT, DeiT, Swin) to a budget, on its device.

    Args:
        model: Dense; not modified, a copy is pruned.
        loader: Calibration images, a few hundred or thousand, normalised for the model: batches (N, channels, height,
            width), or tuples that start with one. Read several times; order and
            batches may change, the images must not.
        budget: Share of MACs to keep, in `STEPS` rounds with the remaining weights refitted by least squares; or an
            `lpvit.Budget`.
        block_shape: Rows (output features) and columns (input features) of a block, with Gauss-Newton saliencies
            and curves. For other methods give `pruning` instead.
        pruning: How blocks are scored and curves measured; its ``batch_size`` is ignored.

    Returns:
        The pruned model with masks and report.

    Raises:
        LpvitError: The loader cannot be read twice or does not fit the model, a block is larger than a layer, the
            budget cannot be met, or something is not finite.
    """
    with torch.inference_mode(False), torch.enable_grad():  # in any context of the caller
        return _prune(model, loader, _as_budget(budget), _as_pruning(block_shape, pruning))


def _prune(model: nn.Module, loader: Iterable[Any], budget: Budget, pruning: Blocks) -> Pruned:
    require_plain_module(model)
    model = call_modules(deepcopy(model).eval())
    device = next(model.parameters()).device
    batches = UserBatches(loader, next(model.parameters()).dtype)
    adopt_input_size(model, batches.first())
    analyse(model.to(device))
    structure = BlockStructure(pruning)
    costs = measure_costs(model)
    latency = _latency(budget, costs, pruning.block_shape, model)
    shapes = Shapes(costs, structure.counts(model), latency=latency)
    compressed = prune_to_budget(model, batches, structure, budget, shapes, device)
    return Pruned(compressed.model.to(device), dict(compressed.keep_masks), pruning.block_shape, budget)


def _latency(
    budget: Budget, costs: pd.DataFrame, block_shape: tuple[int, int], model: nn.Module
) -> pd.DataFrame | None:
    """Milliseconds of the layers for a latency budget: from its table, or measured in the model's dtype."""
    if budget.latency is None:
        return None
    if budget.latency_table is not None:
        return read_latency(budget.latency_table, block_shape)
    weight = next(model.parameters())
    return measure_latency(costs, block_shape, batch_size=LATENCY_BATCH_SIZE, dtype=weight.dtype, device=weight.device)


def adopt_input_size(model: nn.Module, images: Tensor) -> None:
    """Sets the size of the given images in the model's data config, which timm leaves at the default.

    Raises:
        LpvitError: The model does not accept images of this size.
    """
    size = tuple(images.shape[1:])
    config = getattr(model, "pretrained_cfg", None) or {}
    model.pretrained_cfg = {**config, "input_size": size}  # type: ignore[assignment]
    try:
        matrix_layers(model)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise LpvitError(
            f"loader: the model does not accept its images of {'x'.join(map(str, size))} ({reason})"
        ) from None


def _as_budget(budget: float | Budget) -> Budget:
    if isinstance(budget, Budget):
        return budget
    try:
        return Budget(macs=budget, reconstruction="least_squares", steps=STEPS)
    except LpvitError:
        raise LpvitError(
            f"budget: found {budget!r}, expected the share of MACs to keep, above 0 and up to 1, or an lpvit.Budget"
        ) from None


def _as_pruning(block_shape: tuple[int, int] | None, pruning: StructureSettings | None) -> Blocks:
    if (block_shape is None) == (pruning is None):
        raise LpvitError("block_shape: give either block_shape=(rows, columns) or pruning=lpvit.Blocks(...)")
    if isinstance(pruning, Blocks):
        return pruning
    if pruning is not None:
        raise LpvitError(
            f"pruning: structure '{pruning.structure}' prunes no blocks; use lpvit.structures.width.narrowing.narrow"
        )
    try:
        return Blocks(block_shape=block_shape, saliency="gauss_newton", distortion="gauss_newton")
    except LpvitError:
        raise LpvitError(f"block_shape: found {block_shape!r}, expected two positive whole numbers") from None
