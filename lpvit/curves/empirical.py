"""The distortion `empirical`: measured by masking one layer at a time.

N = images of a batch; K = logits; P = pruned copies of a layer that run side by side; O, I = output and input features
of a layer.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lpvit.curves.curve import blocks_pruned_at, pruning_ranks, sampled_curve
from lpvit.models.blocks import BlockGrid
from lpvit.models.layers import LayerSpec, MatrixLayer, weight_matrix
from lpvit.models.network import understand
from lpvit.models.passes import (
    Batches,
    constant,
    evaluation_mode,
    recorded_units,
    replaced_forwards,
    require_finite_logits,
)


@torch.no_grad()
def empirical_curves(
    model: nn.Module,
    loader: Batches,
    layers: Sequence[LayerSpec],
    blocks: pd.DataFrame,
    block_shape: tuple[int, int],
    points: int,
    device: torch.device | str,
    images_per_pass: int = 256,
    share: float = 1.0,
) -> pd.DataFrame:
    r"""Curves measured by masking one layer at a time: the mean over the images of the squared change of the logits.

    .. math:: D = \frac{1}{|X|} \sum_{x \in X} \lVert f(x; W) - f(x; \tilde W) \rVert^2

    A batch passes through the dense model once. Every pruned pass resumes where the layer's transformer block begins,
    from the dense activations, with several sparsities side by side as one larger batch.

    Args:
        model: Dense model; moved to the device, otherwise left as it is.
        loader: The images X.
        layers: Layers to measure.
        blocks: Scores, schema ``BLOCKS``.
        block_shape: Rows and columns of a block.
        points: Sparsities of a curve, evenly from 0 to 1.
        device: Where to compute.
        images_per_pass: Bound of N * P, and so of memory; never less than one batch.
        share: Of the pruned weights that is taken away; the distortion is divided by its square.

    Returns:
        Schema ``CURVES``; exactly 0 where nothing is pruned.

    Raises:
        LpvitError: A block is larger than a layer, or the dense model's output is not finite.
    """
    model.to(device)
    grids = {layer.name: BlockGrid(layer.shape, block_shape) for layer in layers}
    of_layer = {str(layer): frame for layer, frame in blocks.groupby("layer", sort=False)}
    ranks = {layer: pruning_ranks(of_layer[layer]).to(device) for layer in grids}
    counts = {
        layer: torch.from_numpy(np.unique(blocks_pruned_at(grid.count, points))[1:]).to(device)
        for layer, grid in grids.items()
    }
    sums = {layer: torch.zeros(grid.count + 1, dtype=torch.float64, device=device) for layer, grid in grids.items()}
    images_seen = 0
    units = understand(model).units
    with evaluation_mode(model):
        for images, _ in tqdm(loader, desc="empirical curves", unit="batch"):
            dense = _record_dense_pass(model, units, images.to(device), grids)
            copies = max(1, images_per_pass // len(images))
            for layer, grid in tqdm(grids.items(), desc="layers", leave=False):
                ranks_of_weights = grid.expand(ranks[layer])
                for pruned in torch.split(counts[layer], copies):
                    scales = 1 - share * (ranks_of_weights < pruned[:, None, None]).to(dense.logits)
                    sums[layer][pruned] += _squared_changes(model, dense, layer, scales) / share**2
            images_seen += len(images)
    return pd.concat(
        [sampled_curve(of_layer[layer], points, sums[layer].cpu() / images_seen) for layer in grids], ignore_index=True
    )


@dataclass(frozen=True)
class _DensePass:
    """What the dense model made of a batch.

    Attributes:
        images: (N, channels, height, width).
        logits: (N, K).
        outputs: Of `lpvit.models.passes.recorded_units`.
        units_before: layer -> number of units (see `lpvit.models.passes`) that had ended when it ran.
    """

    images: Tensor
    logits: Tensor
    outputs: dict[str, Tensor]
    units_before: dict[str, int]


def _record_dense_pass(model: nn.Module, units: Sequence[str], images: Tensor, layers: Iterable[str]) -> _DensePass:
    units_before: dict[str, int] = {}
    with recorded_units(model, units) as outputs:
        hooks = [
            model.get_submodule(layer).register_forward_pre_hook(
                lambda _, __, layer=layer: units_before.update({layer: len(outputs)})
            )
            for layer in layers
        ]
        try:
            logits = model(images)
        finally:
            for hook in hooks:
                hook.remove()
    require_finite_logits(logits, model, images)
    return _DensePass(images, logits, outputs, units_before)


def _squared_changes(model: nn.Module, dense: _DensePass, layer: str, scales: Tensor) -> Tensor:
    """Squared change of the logits, summed over the batch, for each way to scale the weights of a layer.

    Args:
        model: Left as it is.
        dense: Of this model.
        layer: The layer that is pruned.
        scales: Factors of its weights, (P, O, I); 0 where a weight is pruned.

    Returns:
        Shape (P,), float64.
    """
    copies = len(scales)
    done = list(dense.outputs)[: dense.units_before[layer]]
    forwards = {unit: constant(dense.outputs[unit]) for unit in done}
    images = dense.images
    if done:
        forwards[done[-1]] = constant(_repeat(dense.outputs[done[-1]], copies))
    else:
        images = _repeat(images, copies)
    pruned_layer = model.get_submodule(layer)
    assert isinstance(pruned_layer, MatrixLayer)
    forwards[layer] = _scaled_side_by_side(pruned_layer, scales)
    with replaced_forwards(model, forwards):
        pruned: Tensor = model(images)
    change = pruned.view(copies, *dense.logits.shape) - dense.logits
    return change.double().square().sum(dim=(1, 2))


def _scaled_side_by_side(layer: MatrixLayer, scales: Tensor) -> Callable[[Tensor], Tensor]:
    """A forward of P versions of a layer, each on its share of the batch, copy after copy.

    The copies differ only from this layer on, so that one product of the first copy's input with the stacked weights
    (P * O, I) serves all.
    """
    copies = len(scales)
    weight = (weight_matrix(layer) * scales).reshape(-1, *layer.weight.shape[1:])
    bias = None if layer.bias is None else layer.bias.repeat(copies)

    def forward(inputs: Tensor) -> Tensor:
        first = inputs[: len(inputs) // copies]
        if isinstance(layer, nn.Conv2d):
            outputs, axis = nn.functional.conv2d(first, weight, bias, layer.stride, layer.padding), 1
        else:
            outputs, axis = nn.functional.linear(first, weight, bias), inputs.dim() - 1
        return torch.cat(outputs.chunk(copies, dim=axis))

    return forward


def _repeat(batch: Tensor, copies: int) -> Tensor:
    return batch.repeat(copies, *[1] * (batch.dim() - 1))
