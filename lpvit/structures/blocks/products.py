r"""Block products: what every block of every layer contributes to a random projection of the logits, image by image.

For an image x with Jacobian J_x of the logits with respect to the weights, and a random probe v over the logits with
E v v^T = I,

.. math:: c_b = \langle (J_x^T v)_b, W_b \rangle,

so that, to first order in the weights, zeroing a set S of blocks changes the logits by

.. math:: E_x \lVert f(x; W) - f(x; \tilde W) \rVert^2 \approx E_{x,v} \Big( \sum_{b \in S} c_b \Big)^2

(the Gauss-Newton form of the distortion, its trace estimated by random probes; Hutchinson, 1989). The probes of an
image are orthogonal and of equal length, which has less variance than independent normal ones, and none with as many
probes as logits.

N = images of a batch; S = images x probes; K = logits; T = tokens of an image in a layer; O, I = output and input
features of a layer; R, C = rows and columns of its grid of blocks; B = R * C; V = changes of a weight.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lpvit.models.analysis.layers import LayerSpec, weight_matrix
from lpvit.models.analysis.passes import Batches
from lpvit.moments.gradients import gradient_products
from lpvit.structures.blocks.grid import BlockGrid


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
    probes. In addition there are the activations of a batch and the gradients that `lpvit.moments.gradients` holds
    at once.

    Args:
        model: Dense model; moved to the device, otherwise not modified.
        loader: Calibration images.
        layers: Layers to describe; each runs once in a forward pass.
        block_shape: Rows and columns of a block.
        probes: Random projections v of the logits per image.
        device: Where to compute.
        seed: Of the probes, which depend neither on the batches nor on the device.

    Returns:
        layer -> c, shape (S, B), float32, on the CPU, in logits; blocks row by row, the probes of an image
        consecutive.

    Raises:
        LpvitError: A block is larger than a layer, or an output or a product is not finite.
    """
    grids = {layer.name: BlockGrid(layer.shape, block_shape) for layer in layers}
    weights = {layer: weight_matrix(model.to(device).get_submodule(layer)).detach() for layer in grids}

    def products(layer: str, gradients: Tensor) -> Tensor:
        return grids[layer].reduce(gradients.mul_(weights[layer])).flatten(1)

    return gradient_products(model, loader, dict.fromkeys(grids, False), products, probes, device, seed)


def change_products(
    model: nn.Module,
    loader: Batches,
    changes: Mapping[str, Tensor],
    probes: int,
    device: torch.device | str,
    seed: int = 0,
) -> dict[str, Tensor]:
    r"""Products of the gradients with any changes of the weights, for example those of a reconstruction.

    To first order, the change :math:`\Delta W` of a layer changes the logits by :math:`E \langle (J_x^T v),
    \Delta W \rangle^2`, the mean square of the result. Zeroing blocks, with :math:`\Delta W = -W` on them, is the
    case of `block_products`.

    Args:
        model: Dense model; moved to the device, otherwise not modified.
        loader: Calibration images.
        changes: layer -> V changes of its weight, (V, O, I), or of weight and bias, (V, O, I + 1).
        probes: Random projections v of the logits per image, the same as in `block_products`.
        device: Where to compute.
        seed: Of the probes.

    Returns:
        layer -> shape (S, V), float32, on the CPU, in logits; the probes of an image consecutive.

    Raises:
        LpvitError: An output or a product is not finite.
    """
    weights = {layer: weight_matrix(model.to(device).get_submodule(layer)) for layer in changes}
    flat = {layer: change.to(weights[layer]).flatten(1) for layer, change in changes.items()}

    def products(layer: str, gradients: Tensor) -> Tensor:
        return gradients.flatten(1) @ flat[layer].T

    with_bias = {layer: change.shape[2] > weights[layer].shape[1] for layer, change in changes.items()}
    return gradient_products(model, loader, with_bias, products, probes, device, seed)
