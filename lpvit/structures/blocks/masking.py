"""Curves measured by masking one layer at a time.

N = images of a batch; K = logits; P = pruned copies of a layer in one batch; O, I = output and input features
of a layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lpvit.models.analysis.layers import LayerSpec, MatrixLayer, weight_matrix
from lpvit.models.analysis.network import analyse
from lpvit.models.analysis.passes import Batches, RecordedPass, evaluation_mode, replaced_forwards
from lpvit.models.outputs import read
from lpvit.progress import bar
from lpvit.structures.blocks.curve import blocks_pruned_at, pruning_ranks, sampled_curve
from lpvit.structures.blocks.grid import BlockGrid


@dataclass(frozen=True)
class MeasuredModel:
    """A model, its images and layers to measure.

    Attributes:
        model: Dense; moved to the device, otherwise not modified.
        images: The images X and labels, in batches.
        layers: Layers to measure.
        block_shape: Rows and columns of a block.
        device: Where to compute.
        images_per_pass: Bound of N * P, which limits memory; at least one batch.
    """

    model: nn.Module
    images: Batches
    layers: Sequence[LayerSpec]
    block_shape: tuple[int, int]
    device: torch.device | str
    images_per_pass: int = 256


@torch.no_grad()
def masked_curves(measured: MeasuredModel, blocks: pd.DataFrame, points: int, share: float = 1.0) -> pd.DataFrame:
    r"""Curves measured by masking one layer at a time: the mean over the images of the squared change of the logits.

    .. math:: D = \frac{1}{|X|} \sum_{x \in X} \lVert f(x; W) - f(x; \tilde W) \rVert^2

    A batch passes through the dense model once. Every pruned pass resumes where the layer's transformer block begins,
    from the dense activations, with several sparsities combined into one larger batch.

    Args:
        measured: The dense model.
        blocks: Scores, schema ``BLOCKS``.
        points: Sparsities of a curve, evenly from 0 to 1.
        share: Of the pruned weights that is removed; the distortion is divided by its square.

    Returns:
        Schema ``CURVES``; exactly 0 where nothing is pruned.

    Raises:
        LpvitError: A block is larger than a layer, or the dense model's output is not finite.
    """
    model = measured.model.to(measured.device)
    of_layer = {str(layer): frame for layer, frame in blocks.groupby("layer", sort=False)}
    pending = {layer.name: _Pending(layer, of_layer[layer.name], points, measured) for layer in measured.layers}
    resume_points = analyse(model).resume_points
    images_seen = 0
    with evaluation_mode(model):
        for images, _ in bar(measured.images, "empirical curves", "batch"):
            dense = RecordedPass.of(model, resume_points, images.to(measured.device), pending)
            copies = max(1, measured.images_per_pass // len(images))
            for layer, curve in bar(pending.items(), "layers of a batch", "layer", leave=False):
                for pruned in torch.split(curve.counts, copies):
                    scales = 1 - share * curve.gone_at(pruned).to(dense.logits)
                    curve.sums[pruned] += _squared_changes(model, dense, layer, scales) / share**2
            images_seen += len(images)
    means = {layer: curve.sums.cpu() / images_seen for layer, curve in pending.items()}
    return pd.concat([sampled_curve(of_layer[layer], points, means[layer]) for layer in means], ignore_index=True)


class _Pending:
    """Accumulator of the curve of a layer.

    Attributes:
        counts: Numbers of blocks to prune, rising, without 0.
        sums: Squared changes of the logits, by the number of blocks pruned, shape (B + 1,).
    """

    def __init__(self, layer: LayerSpec, blocks: pd.DataFrame, points: int, measured: MeasuredModel) -> None:
        grid = BlockGrid(layer.shape, measured.block_shape)
        self._ranks = grid.expand(pruning_ranks(blocks).to(measured.device))
        self.counts = torch.from_numpy(np.unique(blocks_pruned_at(grid.count, points))[1:]).to(measured.device)
        self.sums = torch.zeros(grid.count + 1, dtype=torch.float64, device=measured.device)

    def gone_at(self, counts: Tensor) -> Tensor:
        """Whether each weight is pruned, for several numbers of pruned blocks, (P,) -> (P, O, I)."""
        return self._ranks < counts[:, None, None]


def _squared_changes(model: nn.Module, dense: RecordedPass, layer: str, scales: Tensor) -> Tensor:
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
    images, forwards = dense.resumed(layer, copies)
    pruned_layer = model.get_submodule(layer)
    assert isinstance(pruned_layer, MatrixLayer)
    forwards[layer] = _scaled_side_by_side(pruned_layer, scales)
    with replaced_forwards(model, forwards):
        pruned = read(model, model(images))
    change = pruned.view(copies, *dense.logits.shape) - dense.logits
    return change.double().square().sum(dim=(1, 2))


def _scaled_side_by_side(layer: MatrixLayer, scales: Tensor) -> Callable[[Tensor], Tensor]:
    """Forward function of P versions of a layer, each on its part of the batch.

    The parts differ only from this layer on, so one product of the first part's input with the stacked weights
    (P * O, I) is enough.
    """
    copies = len(scales)
    weight = (weight_matrix(layer) * scales).reshape(-1, *layer.weight.shape[1:])
    bias = None if layer.bias is None else layer.bias.repeat(copies)

    def forward(inputs: Tensor) -> Tensor:
        first = inputs[: len(inputs) // copies]
        if isinstance(layer, nn.Conv2d):
            outputs, axis = nn.functional.conv2d(first, weight, bias, layer.stride, layer.padding, layer.dilation), 1
        else:
            outputs, axis = nn.functional.linear(first, weight, bias), inputs.dim() - 1
        return torch.cat(outputs.chunk(copies, dim=axis))

    return forward
