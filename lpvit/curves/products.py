r"""Block products: what every block of every layer contributes to a random projection of the logits, image by image.

For an image x with Jacobian J_x of the logits with respect to the weights, and a random probe v over the logits with
E v v^T = I,

.. math:: c_b = \langle (J_x^T v)_b, W_b \rangle,

so that, to first order in the weights, zeroing a set S of blocks changes the logits by

.. math:: E_x \lVert f(x; W) - f(x; \tilde W) \rVert^2 \approx E_{x,v} \Big( \sum_{b \in S} c_b \Big)^2

(the Gauss-Newton form of the distortion, its trace estimated by random probes; Hutchinson, 1989). The probes of an
image are orthogonal and of equal length, which leaves less to chance than independent normal ones, and nothing when
there are as many as logits.

N = images of a batch; S = images x probes; K = logits; T = tokens of an image in a layer; O, I = output and input
features of a layer; R, C = rows and columns of its grid of blocks; B = R * C; V = changes of a weight.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from lpvit.curves.statistics import Statistics, collect_statistics
from lpvit.errors import LpvitError
from lpvit.models.blocks import BlockGrid
from lpvit.models.layers import LayerSpec, weight_matrix
from lpvit.models.passes import Batches, evaluation_mode
from lpvit.moments.gradients import layer_gradients
from lpvit.progress import bar

GRADIENT_NUMBERS = 2**24  # of per-image weight gradients held at once: 64 MiB in float32


def statistics_with_products(
    model: nn.Module,
    loader: Batches,
    layers: Sequence[LayerSpec],
    block_shape: tuple[int, int],
    probes: int,
    device: torch.device | str,
    *,
    averaged: bool = True,
) -> Statistics:
    """All that the scores and predicted curves need: a pass for the averaged gradient, and one for block products.

    Args:
        model: Dense model; moved to the device, otherwise left as it is.
        loader: Calibration images.
        layers: Layers to describe.
        block_shape: Rows and columns of a block.
        probes: Random projections of the logits per image; with 0 there are no block products.
        device: Where to compute.
        averaged: Whether to take the averaged gradient.

    Raises:
        LpvitError: As `lpvit.curves.statistics.collect_statistics` and `block_products`.
    """
    statistics = collect_statistics(model, loader, layers, block_shape, device, averaged=averaged)
    if not probes:
        return statistics
    products = block_products(model, loader, layers, block_shape, probes, device)
    return {layer: tables | {"block_products": products[layer]} for layer, tables in statistics.items()}


def block_products(
    model: nn.Module,
    loader: Batches,
    layers: Sequence[LayerSpec],
    block_shape: tuple[int, int],
    probes: int,
    device: torch.device | str,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Products c_b of all blocks, from one forward pass and ``probes`` backward passes per image.

    The result takes 4 bytes * S * (blocks of all layers): 1.3 GB for DeiT-B in 32x32 blocks with 2,000 images and two
    probes. Beside it there are the activations of a batch and, whatever the model, ``GRADIENT_NUMBERS`` of gradients or
    those of one image.

    Args:
        model: Dense model; moved to the device, otherwise left as it is.
        loader: Calibration images.
        layers: Layers to describe; each runs once in a forward pass.
        block_shape: Rows and columns of a block.
        probes: Random projections v of the logits per image.
        device: Where to compute.
        seed: Of the probes, which depend neither on the batches nor on the device.

    Returns:
        layer -> c, shape (S, B), float32, on the CPU, in logits; blocks row by row, the probes of an image one after
        the other.

    Raises:
        LpvitError: A block is larger than a layer, or an output or a product is not finite.
    """
    grids = {layer.name: BlockGrid(layer.shape, block_shape) for layer in layers}
    weights = {layer: weight_matrix(model.to(device).get_submodule(layer)).detach() for layer in grids}

    def products(layer: str, gradients: Tensor) -> Tensor:
        return grids[layer].reduce(gradients.mul_(weights[layer])).flatten(1)

    return _products(model, loader, dict.fromkeys(grids, False), products, probes, device, seed)


def change_products(
    model: nn.Module,
    loader: Batches,
    changes: Mapping[str, Tensor],
    probes: int,
    device: torch.device | str,
    seed: int = 0,
) -> dict[str, Tensor]:
    r"""Products of the gradients with any changes of the weights, say those of a reconstruction.

    To first order, the change :math:`\Delta W` of a layer changes the logits by :math:`E \langle (J_x^T v),
    \Delta W \rangle^2`, the mean square of what this returns. Zeroing blocks, with :math:`\Delta W = -W` on them, is
    the case that `block_products` has.

    Args:
        model: Dense model; moved to the device, otherwise left as it is.
        loader: Calibration images.
        changes: layer -> V changes of its weight, (V, O, I), or of weight and bias, (V, O, I + 1).
        probes: Random projections v of the logits per image, the same as in `block_products`.
        device: Where to compute.
        seed: Of the probes.

    Returns:
        layer -> shape (S, V), float32, on the CPU, in logits; the probes of an image one after the other.

    Raises:
        LpvitError: An output or a product is not finite.
    """
    weights = {layer: weight_matrix(model.to(device).get_submodule(layer)) for layer in changes}
    flat = {layer: change.to(weights[layer]).flatten(1) for layer, change in changes.items()}

    def products(layer: str, gradients: Tensor) -> Tensor:
        return gradients.flatten(1) @ flat[layer].T

    with_bias = {layer: change.shape[2] > weights[layer].shape[1] for layer, change in changes.items()}
    return _products(model, loader, with_bias, products, probes, device, seed)


def _products(
    model: nn.Module,
    loader: Batches,
    with_bias: Mapping[str, bool],
    products: Callable[[str, Tensor], Tensor],
    probes: int,
    device: torch.device | str,
    seed: int,
) -> dict[str, Tensor]:
    """What a function makes of the gradients of every image and probe: layer and (n, O, I) -> (n, B).

    Layers ``with_bias`` have the gradient of the bias as one more column.
    """
    model.to(device)
    layers = list(with_bias)
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    with evaluation_mode(model):
        for batch, _ in bar(loader, "gradients", "batch"):
            by_probe: dict[str, list[Tensor]] = {layer: [] for layer in layers}
            for layer, inputs, gradients in layer_gradients(model, batch.to(device), layers, probes, generator):
                tokens = nn.functional.pad(inputs, (0, 1), value=1.0) if with_bias[layer] else inputs
                by_probe[layer].append(
                    torch.cat([products(layer, chunk) for chunk in _image_gradients(tokens, gradients)])
                )
            for layer, parts in by_probe.items():
                found[layer].append(torch.stack(parts, dim=1).flatten(0, 1).float().cpu())
    return {layer: _require_finite(layer, torch.cat(found.pop(layer))) for layer in layers}


def _image_gradients(inputs: Tensor, output_gradients: Tensor) -> Iterator[Tensor]:
    """Gradients of the weight, ``output_gradients^T inputs`` of every image, (n, O, I), as many as memory allows.

    Args:
        inputs: (N, T, I).
        output_gradients: (N, T, O).
    """
    images_at_once = max(1, GRADIENT_NUMBERS // (inputs.shape[2] * output_gradients.shape[2]))
    for tokens, gradients in zip(
        torch.split(inputs, images_at_once), torch.split(output_gradients, images_at_once), strict=True
    ):
        yield gradients.mT @ tokens


def _require_finite(layer: str, products: Tensor) -> Tensor:
    if not products.isfinite().all():
        raise LpvitError(
            f"{layer}: its block products on the calibration images are NaN or infinite; check the dense weights"
        )
    return products
