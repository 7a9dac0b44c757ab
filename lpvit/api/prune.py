"""Pruning in one call, with the functions of the workflow.

N = images of a batch.
"""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import nn

from lpvit.allocation.feasibility import Shapes
from lpvit.allocation.latency import read_latency
from lpvit.allocation.settings import LATENCY_BATCH_SIZE, Budget
from lpvit.api.batches import UserBatches
from lpvit.api.pruned import Pruned
from lpvit.bases.align import align
from lpvit.costs.cost import measure_costs
from lpvit.costs.energy import HOROWITZ
from lpvit.costs.settings import Energy
from lpvit.errors import LpvitError
from lpvit.inference.layer_latency import measure_latency
from lpvit.models.analysis.network import analyse, require_plain_module
from lpvit.models.outputs import Output
from lpvit.models.preparation import prepared
from lpvit.pruning.prune import prune as prune_to_budget
from lpvit.schemes.edit import add_scheme
from lpvit.schemes.settings import Scheme
from lpvit.structures.blocks.settings import Blocks
from lpvit.structures.factors.settings import Factors
from lpvit.structures.settings import StructureSettings
from lpvit.structures.structure import ModelStructure, Structure, structure_of


def prune(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    budget: float | Budget,
    block_shape: tuple[int, int] | None = None,
    pruning: StructureSettings | None = None,
    schemes: Sequence[Scheme] = (),
    energy: Energy = HOROWITZ,
    output: Output | None = None,
) -> Pruned:
    """Compresses a vision transformer to a budget, on its device: by default with low-rank factors.

    Args:
        model: Dense, of timm, transformers, torchvision, open_clip or your own; not modified, a copy is pruned.
        loader: Calibration images, a few hundred or thousand, normalised for the model: batches (N, channels, height,
            width), or tuples that start with one. Read several times; order and
            batches may change, the images must not.
        budget: Share of MACs to keep, with the remaining weights refitted by least squares, blocks in four rounds; or
            an `lpvit.Budget`.
        block_shape: Prunes blocks of so many rows (output features) and columns (input features) instead, with
            Gauss-Newton saliencies and curves.
        pruning: What is removed and how that is measured: `lpvit.Factors` (the default), `lpvit.Blocks` or
            `lpvit.Width`. Its ``batch_size`` is ignored.
        schemes: Added to the pruned model, in this order; the budget is then a share of what the dense model costs with
            them.
        energy: Constants of the energy model, for a budget in energy.
        output: What counts of the model's output, if it is not one tensor: a key or a place, several of them, or a
            function that returns tensors. By default logits, else pooled features, else the last hidden state; of a
            list, such as the features of a backbone, all tensors, each scaled to unit energy.

    Returns:
        The pruned model with masks and report.

    Raises:
        LpvitError: The loader cannot be read twice or does not fit the model, a block is larger than a layer, the
            budget cannot be met, or something is not finite.
    """
    pruning = _as_pruning(block_shape, pruning)
    budget = _as_budget(budget, pruning.rounds)
    try:
        pruning.require_budget(budget)
    except ValueError as error:
        raise LpvitError(f"budget: {error}") from None
    with torch.inference_mode(False), torch.enable_grad():  # in any context of the caller
        pruned = _prune(model, loader, budget, pruning, _CostModel(schemes, energy), output)
        for scheme in schemes:
            add_scheme(pruned.model, scheme)
    return pruned


class _CostModel(NamedTuple):
    """What a budget counts by."""

    schemes: Sequence[Scheme]
    energy: Energy

    def shapes(self, model: nn.Module, structure: Structure | ModelStructure, budget: Budget) -> Shapes:
        with_schemes = deepcopy(model) if self.schemes else model
        for scheme in self.schemes:
            add_scheme(with_schemes, scheme)
        costs = measure_costs(with_schemes)
        if isinstance(structure, ModelStructure):
            return Shapes(costs, {}, self.energy)
        return Shapes(costs, structure.counts(model), self.energy, _latency(budget, costs, structure, model))


def _prune(
    model: nn.Module,
    loader: Iterable[Any],
    budget: Budget,
    pruning: StructureSettings,
    cost_model: _CostModel,
    output: Output | None,
) -> Pruned:
    require_plain_module(model)
    parameter = next(model.parameters())
    device, batches = parameter.device, UserBatches(loader, parameter.dtype)
    model = prepared(model, batches.first().to(device), output)
    analyse(model)
    if pruning.freedoms:
        model, _ = align(model, batches, pruning.freedoms, device)
    structure = structure_of(pruning)
    shapes = cost_model.shapes(model, structure, budget)
    compressed = prune_to_budget(model, batches, structure, budget, shapes, device)
    masks, block_shape = dict(compressed.keep_masks), compressed.block_shape or (1, 1)
    return Pruned(compressed.model.to(device), masks, block_shape, budget, shapes.costs)


def _latency(budget: Budget, costs: pd.DataFrame, structure: Structure, model: nn.Module) -> pd.DataFrame | None:
    """Milliseconds of the layers for a latency budget: from its table, or measured in the model's dtype."""
    if budget.latency is None:
        return None
    if structure.block_shape is None:
        raise LpvitError("budget: latency: layers are timed in blocks only; use 'macs', or structure 'blocks'")
    if budget.latency_table is not None:
        return read_latency(budget.latency_table, structure.block_shape)
    parameter = next(model.parameters())
    return measure_latency(
        *(costs, structure.block_shape),
        batch_size=LATENCY_BATCH_SIZE,
        dtype=parameter.dtype,
        device=parameter.device,
    )


def _as_budget(budget: float | Budget, rounds: int) -> Budget:
    if isinstance(budget, Budget):
        return budget
    try:
        return Budget(macs=budget, reconstruction="least_squares", steps=rounds)
    except LpvitError:
        raise LpvitError(
            f"budget: found {budget!r}, expected the share of MACs to keep, above 0 and up to 1, or an lpvit.Budget"
        ) from None


def _as_pruning(block_shape: tuple[int, int] | None, pruning: StructureSettings | None) -> StructureSettings:
    if block_shape is None:
        return pruning or Factors()
    if pruning is not None:
        raise LpvitError("block_shape: give either block_shape=(rows, columns) or pruning=lpvit.Blocks(...)")
    try:
        return Blocks(block_shape=block_shape, saliency="gauss_newton", distortion="gauss_newton")
    except LpvitError:
        raise LpvitError(f"block_shape: found {block_shape!r}, expected two positive whole numbers") from None
