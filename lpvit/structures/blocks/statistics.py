"""Statistics of every block of every prunable layer, from one pass over the calibration images.

N = images of a batch; K = logits; O, I = output and input features of a layer; R, C = rows and columns of its grid of
blocks; S = images x probes of the block products, which `lpvit.structures.blocks.products` adds.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import InstanceOf
from torch import Tensor, nn
from torch.func import functional_call

from lpvit.errors import LpvitError
from lpvit.models.analysis.layers import LayerSpec, weight_matrix
from lpvit.models.analysis.passes import Batches, evaluation_mode, require_finite_logits
from lpvit.models.outputs import read
from lpvit.progress import bar
from lpvit.store.artifacts import load
from lpvit.structures.blocks.grid import BlockGrid
from lpvit.structures.calibration import Statistics


def collect_statistics(
    model: nn.Module,
    loader: Batches,
    layers: Sequence[LayerSpec],
    block_shape: tuple[int, int],
    device: torch.device | str,
    *,
    averaged: bool = True,
) -> Statistics:
    """Statistics of the blocks of every layer: of weights and, if requested, of their averaged gradient.

    Args:
        model: Dense model; moved to the device, otherwise not modified.
        loader: Calibration images.
        layers: Layers to describe.
        block_shape: Rows and columns of a block.
        device: Where to compute.
        averaged: Whether to include the gradient, averaged over the calibration images.

    Returns:
        For every layer the tables of `block_statistics`, on the CPU.

    Raises:
        LpvitError: A block is larger than a layer, or an output or gradient is not finite.
    """
    grids = {layer.name: BlockGrid(layer.shape, block_shape) for layer in layers}
    gradients = averaged_gradients(model, loader, list(grids), device) if averaged else {}
    return {
        name: block_statistics(weight_matrix(model.get_submodule(name)).detach(), gradients.get(name), grid)
        for name, grid in grids.items()
    }


def load_statistics(path: str | Path) -> Statistics:
    """Reads the statistics of blocks that a stage has saved.

    Raises:
        LpvitError: As `lpvit.store.artifacts.load`, or the tables of a layer are inconsistent.
    """
    statistics: Statistics = load(path, "statistics", dict[str, dict[str, InstanceOf[Tensor]]])
    for layer, tables in statistics.items():
        shapes = {tuple(table.shape) for name, table in tables.items() if name != "block_products"}
        (rows, columns), *others = shapes if {len(shape) for shape in shapes} == {2} else [(0, 0)]
        products = tables.get("block_products", torch.empty(0, rows * columns))
        if others or products.ndim != 2 or products.shape[1] != rows * columns or rows * columns == 0:
            raise LpvitError(f"{path}: the tables of '{layer}' are not of one grid of blocks; delete it and rerun")
    return statistics


def averaged_gradients(
    model: nn.Module, loader: Batches, layers: Sequence[str], device: torch.device | str
) -> dict[str, Tensor]:
    r"""Gradient of the mean squared logit, averaged over all images, with the model in evaluation mode.

    .. math:: g = \frac{1}{|X|} \sum_{x \in X} \frac{d}{dW} \frac{1}{K} \sum_k f_k(x; W)^2

    (LPViT, the gradient of its Taylor expansion). Every image has the same weight for any batch size.

    Args:
        model: Dense model; moved to the device, otherwise not modified.
        loader: The images X.
        layers: Names of layers.
        device: Where to compute.

    Returns:
        layer -> (O, I), float64, in squared logits per unit of weight.

    Raises:
        LpvitError: An output or a gradient is not finite; the layer is named.
    """
    model.to(device)
    weights = {f"{layer}.weight": model.get_parameter(f"{layer}.weight").detach().requires_grad_() for layer in layers}
    sums = [torch.zeros_like(weight, dtype=torch.float64, requires_grad=False) for weight in weights.values()]
    images_seen = 0
    with evaluation_mode(model):
        for batch, _ in bar(loader, "averaged gradient", "batch"):
            images = batch.to(device)
            logits = read(model, functional_call(model, weights, (images,)))
            require_finite_logits(logits, model, images)
            loss = logits.square().mean(dim=1).sum()
            for total, gradient in zip(sums, torch.autograd.grad(loss, list(weights.values())), strict=True):
                total.add_(gradient)
            images_seen += len(images)
    gradients = {layer: (total / images_seen).flatten(1) for layer, total in zip(layers, sums, strict=True)}
    for layer, gradient in gradients.items():
        if not gradient.isfinite().all():
            raise LpvitError(
                f"{layer}: its gradient on the calibration images is NaN or infinite; check the dense weights"
            )
    return gradients


def block_statistics(weight: Tensor, gradient: Tensor | None, grid: BlockGrid) -> dict[str, Tensor]:
    """Sums over the weights w of every block, with their gradients g.

    Args:
        weight: (O, I).
        gradient: (O, I), or None.
        grid: The blocks.

    Returns:
        On the CPU, each (R, C) and float64 (``weights``: int64): ``weights``, their number; ``absolute_weight_sum``,
        abs(w); ``squared_weight_sum``, w^2; and with a gradient ``product_sum``, g w; ``squared_product_sum``, (g w)^2;
        ``absolute_product_sum``, abs(g w).
    """
    weight = weight.double()
    terms = {"absolute_weight_sum": weight.abs(), "squared_weight_sum": weight.square()}
    if gradient is not None:
        product = weight * gradient.double()
        terms |= {
            "product_sum": product,
            "squared_product_sum": product.square(),
            "absolute_product_sum": product.abs(),
        }
    return {"weights": grid.sizes()} | {name: grid.reduce(term).cpu() for name, term in terms.items()}


def mean_squared_products(block_products: Tensor) -> Tensor:
    """Mean over the samples of c^2: (S, B) -> (B,), float64, in squared logits per image."""
    norms: Tensor = torch.linalg.vector_norm(block_products, dim=0, dtype=torch.float64)
    return norms.square() / len(block_products)
