"""Costs of a model: multiply-accumulates, parameters, energy and the paper's term, dense and pruned."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import pandas as pd
import torch
from torch import nn

from lpvit.costs.energy import HOROWITZ, layer_energy, power_term
from lpvit.costs.settings import Energy
from lpvit.models.analysis.layers import MatrixLayer, matrix_layers
from lpvit.models.analysis.trace import trace
from lpvit.models.edits import edits_of
from lpvit.precisions import name_of


def measure_costs(model: nn.Module) -> pd.DataFrame:
    """The layers that multiply by a weight matrix, in order of execution, with their costs.

    Args:
        model: On any device; on the meta device nothing is computed.

    Returns:
        Schema ``COSTS``.
    """
    rows = [
        {
            "layer": layer.name,
            "role": layer.role,
            "out_features": layer.out_features,
            "in_features": layer.in_features,
            "tokens": layer.tokens,
            "macs": layer.macs,
            "parameters": layer.parameters,
        }
        for layer in matrix_layers(model)
    ]
    return pd.DataFrame(rows)


def count_macs(model: nn.Module) -> int:
    """Multiply-accumulates of all matrix products for one image, attention included: half of torch's FLOP count.

    Zeroed weights are counted like others. Softmax, norms, activations and biases do not count, as in torch.

    Args:
        model: On any device; on the meta device nothing is computed.
    """
    return trace(model).macs


class Kept(NamedTuple):
    """Remaining blocks of a pruned layer.

    Attributes:
        blocks: Blocks of its weight.
        blocks_kept: Kept blocks.
        weights_pruned: Weights of the pruned blocks.
    """

    blocks: int
    blocks_kept: int
    weights_pruned: int


def layer_table(
    stage: str,
    costs: pd.DataFrame,
    kept: Mapping[str, Kept] = MappingProxyType({}),
    energy: Energy = HOROWITZ,
    dtypes: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Costs of every layer without its pruned blocks.

    A layer that is not among the pruned ones is dense and has no blocks, hence no power term.

    Args:
        stage: ``dense``, ``pruned``, ``finetuned``, ``quantised`` or ``finetuned_quantised``.
        costs: Schema ``COSTS``.
        kept: Layer -> its remaining blocks, from `lpvit.structures.blocks.masks.kept_blocks`; empty for a dense model.
        energy: Constants of the energy model.
        dtypes: Layer -> dtype of its products, where it differs from the energy model's ``dtype``, from
            `narrow_dtypes`.

    Returns:
        Schema ``LAYERS``, in the order of ``costs``.
    """
    rows = []
    for cost in costs.to_dict("records"):
        shape = cost["out_features"], cost["in_features"]
        blocks, blocks_kept, pruned = kept.get(cost["layer"], Kept(0, 0, 0))
        constants = energy.of_dtype((dtypes or {}).get(cost["layer"], energy.dtype))
        rows.append(
            {
                "stage": stage,
                "layer": cost["layer"],
                "role": cost["role"],
                "prunable": cost["layer"] in kept,
                "blocks": blocks,
                "blocks_kept": blocks_kept,
                "macs": cost["macs"] - cost["tokens"] * pruned,
                "parameters": cost["parameters"] - pruned,
                "power_term": power_term(blocks_kept, cost["in_features"]),
                "energy": layer_energy(*shape, cost["tokens"], shape[0] * shape[1] - pruned, constants),
            }
        )
    return pd.DataFrame(rows)


def narrow_dtypes(model: nn.Module) -> dict[str, str]:
    """Layer -> dtype of its weight, for the layers of a model that are not in float32."""
    return {
        name: name_of(module.weight.dtype)
        for name, module in model.named_modules()
        if isinstance(module, MatrixLayer) and module.weight.dtype != torch.float32
    }


def model_metrics(layers: pd.DataFrame, costs: pd.DataFrame, model: nn.Module) -> pd.DataFrame:
    """One row with the total costs of a model.

    Args:
        layers: Of one stage, from `layer_table`.
        costs: Of the dense model, schema ``COSTS``.
        model: With all its weights; zeroed ones are counted as dense.

    Returns:
        Schema ``METRICS`` without the columns measured on images, one row.
    """
    dense_parameters = sum(parameter.numel() for parameter in model.parameters())
    macs = int(layers["macs"].sum())
    pruned = int(costs["parameters"].sum() - layers["parameters"].sum())
    prunable = costs[costs["layer"].isin(layers.loc[layers["prunable"], "layer"])]
    row = {
        "stage": layers["stage"].iloc[0],
        "macs": macs,
        "macs_all": count_macs(model) - int(costs["macs"].sum()) + macs,
        "parameters": dense_parameters - pruned,
        "sparsity": pruned / int((prunable["out_features"] * prunable["in_features"]).sum()) if pruned else 0.0,
        "power_term": None if any(edit.removes for edit in edits_of(model)) else _relative_power(layers, costs),
        "energy": layers["energy"].sum(),
    }
    return pd.DataFrame([row])


def _relative_power(layers: pd.DataFrame, costs: pd.DataFrame) -> float | None:
    """Power terms of the kept blocks over those of all blocks: comparable between block shapes, 1 if dense.

    None for a model compressed by other means than blocks.
    """
    if not layers["blocks"].any():
        return 1.0 if layers["stage"].iloc[0] == "dense" else None
    return float(layers["power_term"].sum() / sum(map(power_term, layers["blocks"], costs["in_features"])))
