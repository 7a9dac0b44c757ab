"""Rate-distortion curves: what pruning the least salient blocks of one layer does to the output, at every sparsity.

N = images of a batch; K = logits; P = pruned copies of a layer that run side by side; O, I = output and input features
of a layer; R, C = rows and columns of its grid of blocks; B = R * C; S = samples of the block products.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from lpvit.blocks import BlockGrid
from lpvit.config import Pruning
from lpvit.masks import pruning_ranks
from lpvit.models import LayerSpec, MatrixLayer, matrix_layers, prunable_layers, weight_matrix
from lpvit.ranking import in_pruning_order
from lpvit.resume import constant, recorded_units, replaced_forwards
from lpvit.statistics import Batches, Statistics, evaluation_mode, mean_squared_products, require_finite_logits

DAMPING = 1e-7  # eps of the second-order term (LPViT)
CUMULATIVE_NUMBERS = 2**23  # of running sums held at once: 64 MiB in float64
CORRECTION_POINTS = 5  # sparsities at which a curve is corrected: 0, 1/4, ... 1
SMALL_SHARE = 0.05  # of the pruned weights taken away: a change that counts as infinitesimal


def rate_distortion_curves(
    statistics: Statistics,
    blocks: pd.DataFrame,
    pruning: Pruning,
    model: nn.Module | None = None,
    loader: Batches | None = None,
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """Curves by the distortion that the settings name.

    Args:
        statistics: From `lpvit.gauss_newton.statistics_with_products`.
        blocks: Scores, schema ``BLOCKS``.
        pruning: Distortion and its options.
        model: The dense model, where the settings ask for a look at images (``pruning.measures_images``).
        loader: Calibration images, likewise.
        device: Where to measure.

    Returns:
        Schema ``CURVES``.

    Raises:
        LpvitError: As `empirical_curves`.
    """
    if pruning.distortion == "taylor":
        return taylor_curves(statistics, blocks, pruning.order, pruning.points)
    if not pruning.measures_images:
        return gauss_newton_curves(statistics, blocks, pruning.form, pruning.points)
    assert model is not None, "the settings ask for a look at images"
    assert loader is not None, "the settings ask for a look at images"
    layers = prunable_layers(matrix_layers(model), pruning.layers)
    if pruning.distortion == "empirical":
        return empirical_curves(model, loader, layers, blocks, pruning.block_shape, pruning.points, device)
    curves = gauss_newton_curves(statistics, blocks, pruning.form, pruning.points)
    few_images = _first_images(loader, pruning.correction_images)
    return corrected_curves(curves, model, few_images, layers, blocks, pruning.block_shape, device)


def taylor_curves(statistics: Statistics, blocks: pd.DataFrame, order: Literal[1, 2], points: int) -> pd.DataFrame:
    """Curves predicted from the averaged gradient, by `taylor_distortion`.

    Args:
        statistics: From `lpvit.statistics.collect_statistics`.
        blocks: Scores, schema ``BLOCKS``.
        order: Of the Taylor expansion.
        points: Sparsities of a curve, evenly from 0 to 1.

    Returns:
        Schema ``CURVES``.
    """
    curves = []
    for layer, of_layer in blocks.groupby("layer", sort=False):
        distortion = taylor_distortion(statistics[str(layer)], pruning_ranks(of_layer), order)
        curves.append(_curve(of_layer, points, distortion))
    return pd.concat(curves, ignore_index=True)


def taylor_distortion(tables: Mapping[str, Tensor], ranks: Tensor, order: Literal[1, 2]) -> Tensor:
    r"""LPViT's distortion of zeroing the first n blocks of the pruning order, for every n.

    With w the pruned weights, so that their change is -w, g their averaged gradients, and O I the weights of the layer,

    .. math::
        D_1 = \frac{1}{O I} \sum (g w)^2, \qquad
        D_2 = D_1 + \frac{1}{2} \Delta W^T (g g^T + \epsilon I) \Delta W
            = D_1 + \frac{1}{2} \Big(\sum g w\Big)^2 + \frac{\epsilon}{2} \sum w^2.

    The curvature has rank one, so that cumulative sums over the blocks give all n at once.

    Args:
        tables: Statistics of the layer, (R, C) each.
        ranks: Place of every block in the pruning order, (R, C).
        order: 1 for D_1, 2 for D_2.

    Returns:
        Shape (B + 1,), float64; 0 where nothing is pruned.
    """
    pruned_first = ranks.flatten().argsort()

    def pruned_sum(name: str) -> Tensor:
        return nn.functional.pad(tables[name].flatten()[pruned_first].cumsum(dim=0), (1, 0))

    distortion = pruned_sum("squared_product_sum") / tables["weights"].sum()
    if order == 2:
        distortion += pruned_sum("product_sum").square() / 2 + DAMPING / 2 * pruned_sum("squared_weight_sum")
    return distortion


def gauss_newton_curves(
    statistics: Statistics, blocks: pd.DataFrame, form: Literal["cumulative", "diagonal"], points: int
) -> pd.DataFrame:
    """Curves predicted from the gradients of every image, by `gauss_newton_distortion`.

    Args:
        statistics: With the ``block_products`` of every layer, from `lpvit.gauss_newton.block_products`.
        blocks: Scores, schema ``BLOCKS``.
        form: With or without the interaction of blocks.
        points: Sparsities of a curve, evenly from 0 to 1.

    Returns:
        Schema ``CURVES``.
    """
    curves = []
    for layer, of_layer in blocks.groupby("layer", sort=False):
        products = statistics[str(layer)]["block_products"]
        distortion = gauss_newton_distortion(products, pruning_ranks(of_layer), form)
        curves.append(_curve(of_layer, points, distortion))
    return pd.concat(curves, ignore_index=True)


def gauss_newton_distortion(block_products: Tensor, ranks: Tensor, form: Literal["cumulative", "diagonal"]) -> Tensor:
    r"""Distortion of zeroing the first n blocks of the pruning order, for every n, to first order in the weights.

    With c the block products of a sample (`lpvit.gauss_newton`) and the mean over the S samples,

    .. math::
        D_{cumulative}(n) = E \Big( \sum_{b \le n} c_b \Big)^2, \qquad D_{diagonal}(n) = \sum_{b \le n} E \, c_b^2.

    The first is an unbiased estimate of the linearised change of the logits. The second leaves out the products of
    different blocks, and with them most of the noise of few samples.

    Args:
        block_products: c, (S, B).
        ranks: Place of every block in the pruning order, (R, C).
        form: Which of the two.

    Returns:
        Shape (B + 1,), float64, in squared logits per image; 0 where nothing is pruned.
    """
    pruned_first = ranks.flatten().argsort()
    if form == "diagonal":
        return nn.functional.pad(mean_squared_products(block_products)[pruned_first].cumsum(dim=0), (1, 0))
    distortion = torch.zeros(len(pruned_first) + 1, dtype=torch.float64)
    for samples in torch.split(block_products, max(1, CUMULATIVE_NUMBERS // len(pruned_first))):
        distortion[1:] += samples[:, pruned_first].cumsum(dim=1, dtype=torch.float64).square_().sum(dim=0)
    return distortion / len(block_products)


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
        layer: torch.from_numpy(np.unique(_blocks_pruned(grid.count, points))[1:]).to(device)
        for layer, grid in grids.items()
    }
    sums = {layer: torch.zeros(grid.count + 1, dtype=torch.float64, device=device) for layer, grid in grids.items()}
    images_seen = 0
    with evaluation_mode(model):
        for images, _ in tqdm(loader, desc="empirical curves", unit="batch"):
            dense = _record_dense_pass(model, images.to(device), grids)
            copies = max(1, images_per_pass // len(images))
            for layer, grid in tqdm(grids.items(), desc="layers", leave=False):
                ranks_of_weights = grid.expand(ranks[layer])
                for pruned in torch.split(counts[layer], copies):
                    scales = 1 - share * (ranks_of_weights < pruned[:, None, None]).to(dense.logits)
                    sums[layer][pruned] += _squared_changes(model, dense, layer, scales) / share**2
            images_seen += len(images)
    return pd.concat(
        [_curve(of_layer[layer], points, sums[layer].cpu() / images_seen) for layer in grids], ignore_index=True
    )


def corrected_curves(
    curves: pd.DataFrame,
    model: nn.Module,
    loader: Batches,
    layers: Sequence[LayerSpec],
    blocks: pd.DataFrame,
    block_shape: tuple[int, int],
    device: torch.device | str,
) -> pd.DataFrame:
    r"""Curves of the first order in the weights, corrected for the finite size of the change.

    A few images suffice for the quotient of the distortions of a finite and of an infinitesimal change, since both are
    measured on them (a control variate):

    .. math:: D_{corrected}(\alpha) = D(\alpha) \, \frac{\sum_x \lVert f(x; W) - f(x; W + \Delta W) \rVert^2}
        {\sum_x \lVert f(x; W) - f(x; W + h \Delta W) \rVert^2 / h^2}, \qquad h \ll 1,

    at ``CORRECTION_POINTS`` sparsities; its logarithm is linear in between, and 0 where nothing is pruned.

    Args:
        curves: Schema ``CURVES``, in the order of the layers.
        model: Dense model; moved to the device, otherwise left as it is.
        loader: The few images x.
        layers: Layers of the curves.
        blocks: Scores, schema ``BLOCKS``.
        block_shape: Rows and columns of a block.
        device: Where to compute.

    Returns:
        Schema ``CURVES``.

    Raises:
        LpvitError: As `empirical_curves`.
    """
    finite, small = (
        empirical_curves(model, loader, layers, blocks, block_shape, CORRECTION_POINTS, device, share=share)
        for share in (1.0, SMALL_SHARE)
    )
    known = small["distortion"] > 0
    quotient = (finite["distortion"] / small["distortion"]).where(known & (finite["distortion"] > 0), 1.0)
    corrections = finite.assign(logarithm=np.log(quotient)).groupby("layer", sort=False)
    corrected = curves.copy()
    for layer, at in corrections:
        of_layer = corrected["layer"] == layer
        logarithm = np.interp(corrected.loc[of_layer, "sparsity"], at["sparsity"], at["logarithm"])
        corrected.loc[of_layer, "distortion"] *= np.exp(logarithm)
    return corrected


def _first_images(loader: Batches, count: int) -> list[tuple[Tensor, Tensor]]:
    batches = []
    for images, labels in loader:
        batches.append((images[:count], labels[:count]))
        count -= len(images)
        if count <= 0:
            break
    return batches


def _blocks_pruned(count: int, points: int) -> NDArray[np.int64]:
    """Nearest integers, halves up, to alpha * B at alpha = 0, 1/(points - 1), ..., 1: shape (points,)."""
    steps = points - 1
    return (2 * np.arange(points, dtype=np.int64) * count + steps) // (2 * steps)


def _curve(blocks_of_layer: pd.DataFrame, points: int, distortion: Tensor) -> pd.DataFrame:
    """A curve in schema ``CURVES``, from the distortion of pruning n blocks for n = 0 ... B, shape (B + 1,)."""
    blocks_pruned = _blocks_pruned(len(blocks_of_layer), points)
    weights_pruned = np.append(0, in_pruning_order(blocks_of_layer)["weights"].to_numpy(np.int64).cumsum())
    return pd.DataFrame(
        {
            "layer": blocks_of_layer["layer"].iloc[0],
            "sparsity": np.linspace(0, 1, points),
            "blocks_pruned": blocks_pruned,
            "weights_pruned": weights_pruned[blocks_pruned],
            "distortion": distortion.numpy()[blocks_pruned],
        }
    )


@dataclass(frozen=True)
class _DensePass:
    """What the dense model made of a batch.

    Attributes:
        images: (N, channels, height, width).
        logits: (N, K).
        outputs: Of `lpvit.resume.recorded_units`.
        units_before: layer -> number of units (see `lpvit.resume`) that had ended when it ran.
    """

    images: Tensor
    logits: Tensor
    outputs: dict[str, Tensor]
    units_before: dict[str, int]


def _record_dense_pass(model: nn.Module, images: Tensor, layers: Iterable[str]) -> _DensePass:
    units_before: dict[str, int] = {}
    with recorded_units(model) as outputs:
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
