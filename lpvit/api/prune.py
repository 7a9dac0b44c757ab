"""Pruning in one call, with the functions of the workflow.

N = images of a batch.
"""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import nn

from lpvit.allocation.feasibility import Shapes
from lpvit.allocation.latency import read_latency
from lpvit.allocation.settings import LATENCY_BATCH_SIZE, Budget
from lpvit.api.arguments import require_type
from lpvit.api.batches import LabelledBatches, UserBatches
from lpvit.api.classes import classes_by, require_classes_by
from lpvit.api.outcome import outcome_measure
from lpvit.api.pruned import Pruned
from lpvit.bases.align import align
from lpvit.costs.cost import measure_costs
from lpvit.costs.energy import HOROWITZ
from lpvit.costs.settings import Energy
from lpvit.data.transforms import undisturbed_generators
from lpvit.errors import LpvitError
from lpvit.inference.layer_latency import measure_latency
from lpvit.models.analysis.network import analyse, require_plain_module
from lpvit.models.architecture import record_classes
from lpvit.models.outputs import Output
from lpvit.models.preparation import prepared
from lpvit.pruning.outcome import best, outcome_table
from lpvit.pruning.prune import prune as prune_to_budget
from lpvit.pruning.prune import prune_to_outcome
from lpvit.quantisation.layers import int8_layers
from lpvit.schemes.edit import add_scheme
from lpvit.schemes.settings import Scheme
from lpvit.structures.blocks.settings import Blocks
from lpvit.structures.factors.settings import Factors
from lpvit.structures.settings import StructureSettings
from lpvit.structures.structure import ModelStructure, structure_of


@undisturbed_generators(on_gpus=True)
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
    held_out: Iterable[Any] | None = None,
) -> Pruned:
    """Compresses a vision transformer to a budget, on its device: by default with low-rank factors.

    Args:
        model: Dense, of timm, transformers, torchvision, open_clip or your own; not modified, a copy is pruned.
        loader: Calibration images, a few hundred or thousand, normalised for the model: batches (N, channels, height,
            width), or tuples that start with one. Read several times; order may change, the images must not.
        budget: Share of MACs to keep (refitted by least squares, blocks in four rounds), or an `lpvit.Budget`.
        block_shape: Prunes blocks of so many rows (output features) and columns (input features) instead, with
            Gauss-Newton saliencies and curves.
        pruning: What is removed and how that is measured: `lpvit.Factors` (the default), `lpvit.Blocks`,
            `lpvit.Mixed` or `lpvit.Width`. Its ``batch_size`` is ignored.
        schemes: Added to the pruned model, in this order; the budget is then a share of the dense costs with them.
        energy: Constants of the energy model, for a budget in energy.
        output: What counts of the model's output, if it is not one tensor: a key or a place, several of them, or a
            function that returns tensors. By default logits, else pooled features, else the last hidden state; of a
            list, such as the features of a backbone, all tensors, each scaled to unit energy.
        held_out: For a budget in ``points_lost``: labelled images other than the calibration images, in a fixed order.

    Returns:
        The pruned model with masks and report, and the names of the classes that the loader's dataset has, if any
        (`lpvit.name_classes` gives others); for a budget by outcome also all models that were tried.

    Raises:
        LpvitError: The loader cannot be read twice or does not fit the model, a block is larger than a layer, the
            budget cannot be met, or something is not finite.
    """
    _require_types(pruning, schemes, output)
    pruning = _as_pruning(block_shape, pruning)
    budget = _as_budget(budget, pruning, schemes)
    _require_energy(energy, budget)
    with torch.inference_mode(False), torch.enable_grad():  # in any context of the caller
        pruned = _prune(model, loader, budget, pruning, _CostModel(schemes, energy), held_out, output)
        for scheme in schemes:
            add_scheme(pruned.model, scheme)
    record_classes(pruned.model, classes_by(loader, model))
    return pruned


def _require_energy(energy: Any, budget: Budget) -> None:
    require_type("energy", energy, Energy, "an lpvit.costs.settings.Energy")
    if energy != HOROWITZ and budget.energy is None:
        raise LpvitError("energy: its constants are for a budget of energy, lpvit.Budget(energy=...); leave it out")


def _require_types(pruning: Any, schemes: Any, output: Any) -> None:
    if output is not None and not callable(output):
        for place in output if isinstance(output, list | tuple) and output else [output]:
            require_type(
                "output", place, str | int, "a key or a place of the model's output, several of them, or a function"
            )
    require_type("pruning", pruning, StructureSettings | None, "lpvit.Factors(), lpvit.Blocks(...) or another")
    require_type("schemes", schemes, Sequence, "a list of lpvit.Scheme")
    for scheme in schemes:
        require_type("schemes", scheme, Scheme, "a list of lpvit.Scheme")


class _CostModel(NamedTuple):
    """What a budget counts by."""

    schemes: Sequence[Scheme]
    energy: Energy

    def shapes(self, model: nn.Module, pruning: StructureSettings, budget: Budget) -> Shapes:
        with_schemes = deepcopy(model) if self.schemes else model
        for scheme in self.schemes:
            add_scheme(with_schemes, scheme)
        costs = measure_costs(with_schemes)
        structure = structure_of(pruning)
        if isinstance(structure, ModelStructure):
            return Shapes(costs, [], self.energy)
        return Shapes(costs, structure.pieces(model), self.energy, _latency(budget, costs, pruning, model))


def _prune(
    model: nn.Module,
    loader: Iterable[Any],
    budget: Budget,
    pruning: StructureSettings,
    cost_model: _CostModel,
    held_out: Iterable[Any] | None,
    output: Output | None,
) -> Pruned:
    require_plain_module(model)
    if int8_layers(model):
        raise LpvitError("model: is quantised, and its rounded weights cannot be refitted; prune first, then quantise")
    parameter = next(model.parameters())
    device, batches = parameter.device, UserBatches(loader, parameter.dtype)
    if held_out is not None:
        require_classes_by(held_out, model)
    model = prepared(model, batches.first().to(device), output)
    analyse(model)
    if pruning.freedoms:
        model, _ = align(model, batches, pruning.freedoms, device)
    structure = structure_of(pruning)
    shapes = cost_model.shapes(model, pruning, budget)
    outcomes = None
    if budget.by_outcome:
        assert not isinstance(structure, ModelStructure), "its settings refuse such a budget"
        image = batches.first()[:1].to(device)
        measure = outcome_measure(budget, model, image, partial(_labelled, held_out, batches.dtype))
        candidates = prune_to_outcome(model, batches, structure, budget, shapes, measure, device)
        compressed = best(candidates, budget.outcome[0]).compressed
        outcomes = outcome_table(candidates, budget)
    else:
        compressed = prune_to_budget(model, batches, structure, budget, shapes, device)
    masks, block_shape = dict(compressed.keep_masks), compressed.block_shape or (1, 1)
    return Pruned(compressed.model.to(device), masks, block_shape, budget, shapes.costs, outcomes)


def _labelled(held_out: Iterable[Any] | None, dtype: torch.dtype) -> LabelledBatches:
    if held_out is None:
        raise LpvitError(
            "held_out: missing; a budget in 'points_lost' needs images with labels that are not used for calibration"
        )
    return LabelledBatches(held_out, dtype)


def _latency(budget: Budget, costs: pd.DataFrame, pruning: StructureSettings, model: nn.Module) -> pd.DataFrame | None:
    """Milliseconds of the layers for a latency budget: from its table, or measured in the model's dtype."""
    if budget.latency is None:
        return None
    if budget.latency_table is not None:
        return read_latency([budget.latency_table], pruning.timed_shapes)
    parameter = next(model.parameters())
    dtype, device = parameter.dtype, parameter.device
    tables = [
        measure_latency(costs, shape, batch_size=LATENCY_BATCH_SIZE, dtype=dtype, device=device)
        for shape in pruning.timed_shapes
    ]
    return pd.concat(tables, ignore_index=True)


def _as_budget(budget: float | Budget, pruning: StructureSettings, schemes: Sequence[Scheme]) -> Budget:
    if not isinstance(budget, Budget):
        try:
            budget = Budget(macs=budget, reconstruction="least_squares", steps=pruning.rounds)
        except LpvitError:
            raise LpvitError(
                f"budget: found {budget!r}, expected the share of MACs to keep, above 0 and up to 1, or an lpvit.Budget"
            ) from None
    try:
        pruning.require_budget(budget)
    except ValueError as error:
        raise LpvitError(f"budget: {error}") from None
    if budget.by_outcome and schemes:
        raise LpvitError(f"schemes: a budget in '{budget.outcome[0]}' is measured without them; add them afterwards")
    return budget


def _as_pruning(block_shape: tuple[int, int] | None, pruning: StructureSettings | None) -> StructureSettings:
    if block_shape is None:
        return pruning or Factors()
    if pruning is not None:
        raise LpvitError("block_shape: give either block_shape=(rows, columns) or pruning=lpvit.Blocks(...)")
    try:
        return Blocks(block_shape=block_shape, saliency="gauss_newton", distortion="gauss_newton")
    except LpvitError:
        raise LpvitError(f"block_shape: found {block_shape!r}, expected two positive whole numbers") from None
