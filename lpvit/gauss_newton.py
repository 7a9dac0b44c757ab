r"""Block products: what every block of every layer contributes to a random projection of the logits, image by image.

For an image x with Jacobian J_x of the logits with respect to the weights, and a probe v ~ N(0, I) over the logits,

.. math:: c_b = \langle (J_x^T v)_b, W_b \rangle,

so that, to first order in the weights, zeroing a set S of blocks changes the logits by

.. math:: E_x \lVert f(x; W) - f(x; \tilde W) \rVert^2 \approx E_{x,v} \Big( \sum_{b \in S} c_b \Big)^2

(the Gauss-Newton form of the distortion, its trace estimated by random probes; Hutchinson, 1989).

N = images of a batch; S = images x probes; K = logits; T = tokens of an image in a layer; O, I = output and input
features of a layer; R, C = rows and columns of its grid of blocks; B = R * C.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

from lpvit.blocks import BlockGrid
from lpvit.errors import LpvitError
from lpvit.models import LayerSpec, weight_matrix
from lpvit.statistics import Batches, Statistics, collect_statistics, evaluation_mode, require_finite_logits

GRADIENT_NUMBERS = 2**24  # of per-image weight gradients held at once: 64 MiB in float32


def statistics_with_products(
    model: nn.Module,
    loader: Batches,
    layers: Sequence[LayerSpec],
    block_shape: tuple[int, int],
    probes: int,
    device: torch.device | str,
) -> Statistics:
    """All that the scores and predicted curves need: one pass over the images, and another one for block products.

    Args:
        model: Dense model; moved to the device, otherwise left as it is.
        loader: Calibration images.
        layers: Layers to describe.
        block_shape: Rows and columns of a block.
        probes: Random projections of the logits per image; with 0 there are no block products.
        device: Where to compute.

    Raises:
        LpvitError: As `lpvit.statistics.collect_statistics` and `block_products`.
    """
    statistics = collect_statistics(model, loader, layers, block_shape, device)
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
    model.to(device)
    grids = {layer.name: BlockGrid(layer.shape, block_shape) for layer in layers}
    generator = torch.Generator().manual_seed(seed)
    products: dict[str, list[Tensor]] = {layer: [] for layer in grids}
    with evaluation_mode(model):
        for batch, _ in tqdm(loader, desc="block products", unit="batch"):
            for layer, of_batch in _products_of_batch(model, batch.to(device), grids, probes, generator).items():
                products[layer].append(of_batch.float().cpu())
    return {layer: _require_finite(layer, torch.cat(products.pop(layer))) for layer in grids}


def _products_of_batch(
    model: nn.Module, images: Tensor, grids: Mapping[str, BlockGrid], probes: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Block products of the images of a batch, layer -> (N * probes, B)."""
    constants = {name: parameter.detach() for name, parameter in model.named_parameters()}
    with _recorded_layers(model, grids) as (inputs, outputs):
        logits = functional_call(model, constants, (images,))
    require_finite_logits(logits, model, images)
    projections = _probes(logits, probes, generator)
    by_probe: dict[str, list[Tensor]] = {layer: [] for layer in grids}
    for i, projection in enumerate(projections):
        gradients = torch.autograd.grad(
            logits, [outputs[layer] for layer in grids], projection, retain_graph=i < probes - 1
        )
        for (layer, grid), gradient in zip(grids.items(), gradients, strict=True):
            module = model.get_submodule(layer)
            by_probe[layer].append(
                layer_products(
                    _input_tokens(module, inputs[layer], len(images)),
                    _output_tokens(module, gradient, len(images)),
                    weight_matrix(module).detach(),
                    grid,
                )
            )
    return {layer: torch.stack(parts, dim=1).flatten(0, 1) for layer, parts in by_probe.items()}


def layer_products(inputs: Tensor, output_gradients: Tensor, weight: Tensor, grid: BlockGrid) -> Tensor:
    """Inner products, block by block, of a weight matrix with its gradient for each image.

    The gradient of an image is ``output_gradients^T inputs``. As many images as ``GRADIENT_NUMBERS`` allows are done
    at once.

    Args:
        inputs: (N, T, I).
        output_gradients: (N, T, O).
        weight: (O, I).
        grid: The blocks.

    Returns:
        Shape (N, B), blocks row by row.
    """
    images_at_once = max(1, GRADIENT_NUMBERS // weight.numel())
    chunks = zip(torch.split(inputs, images_at_once), torch.split(output_gradients, images_at_once), strict=True)
    return torch.cat([grid.reduce((gradients.mT @ tokens).mul_(weight)).flatten(1) for tokens, gradients in chunks])


def _probes(logits: Tensor, probes: int, generator: torch.Generator) -> Tensor:
    """Standard normal numbers, shape (probes, N, K), drawn image by image so that batches do not matter."""
    of_images = [torch.randn(probes, logits.shape[1], generator=generator) for _ in logits]
    return torch.stack(of_images, dim=1).to(logits)


@contextmanager
def _recorded_layers(
    model: nn.Module, layers: Mapping[str, BlockGrid]
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Keeps input and output of layers in a forward pass, and makes the outputs differentiable."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def record(layer: str, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        inputs[layer] = arguments[0].detach()
        outputs[layer] = output.requires_grad_()

    hooks = [
        model.get_submodule(layer).register_forward_hook(
            lambda _, arguments, output, layer=layer: record(layer, arguments, output)
        )
        for layer in layers
    ]
    try:
        yield inputs, outputs
    finally:
        for hook in hooks:
            hook.remove()


def _input_tokens(layer: nn.Module, inputs: Tensor, images: int) -> Tensor:
    """What a layer multiplies with its weight matrix, (N, T, I); windows of an image follow one another."""
    if isinstance(layer, nn.Conv2d):
        assert not isinstance(layer.padding, str)
        patches = nn.functional.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        return patches.transpose(1, 2)
    return inputs.reshape(images, -1, inputs.shape[-1])


def _output_tokens(layer: nn.Module, outputs: Tensor, images: int) -> Tensor:
    """What a layer makes of its tokens, (N, T, O)."""
    if isinstance(layer, nn.Conv2d):
        return outputs.flatten(2).transpose(1, 2)
    return outputs.reshape(images, -1, outputs.shape[-1])


def _require_finite(layer: str, products: Tensor) -> Tensor:
    if not products.isfinite().all():
        raise LpvitError(
            f"{layer}: its block products on the calibration images are NaN or infinite; check the dense weights"
        )
    return products
