r"""Gradients of random projections of the logits with respect to every layer, image by image.

For an image x with Jacobian J_x of the logits with respect to the weights, and a random probe v over the logits with
E v v^T = I, one backward pass gives J_x^T v for all layers. The probes of an image are orthogonal and of equal length,
which has less variance than independent normal ones (Hutchinson, 1989), and none with as many probes as logits.

N = images of a batch; S = images x probes; K = logits; T = tokens of an image in a layer; O, I = output and input
features of a layer; B = numbers kept per gradient.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call

from lpvit.errors import LpvitError
from lpvit.models.analysis.passes import Batches, evaluation_mode, require_finite_logits
from lpvit.models.analysis.trace import hooks
from lpvit.models.outputs import read
from lpvit.progress import bar

GRADIENT_NUMBERS = 2**24  # of per-image weight gradients held at once: 64 MiB in float32
ACTIVATION_NUMBERS = 2**27  # of inputs and outputs of layers in a pass: 512 MiB in float32; a pass keeps as much again


def gradient_products(
    model: nn.Module,
    loader: Batches,
    with_bias: Mapping[str, bool],
    products: Callable[[str, Tensor], Tensor],
    probes: int,
    device: torch.device | str,
    seed: int,
) -> dict[str, Tensor]:
    """Applies a function to the gradients of every image and probe: layer and (n, O, I) -> (n, B).

    Layers ``with_bias`` have the gradient of the bias as an additional column.
    """
    model.to(device)
    layers = list(with_bias)
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    with evaluation_mode(model):
        for batch in in_parts(model, bar(loader, "gradients", "batch"), layers, device):
            by_probe: dict[str, list[Tensor]] = {layer: [] for layer in layers}
            for layer, inputs, gradients in layer_gradients(model, batch, layers, probes, generator):
                tokens = nn.functional.pad(inputs, (0, 1), value=1.0) if with_bias[layer] else inputs
                by_probe[layer].append(
                    torch.cat([products(layer, chunk) for chunk in _image_gradients(tokens, gradients)])
                )
            for layer, parts in by_probe.items():
                found[layer].append(torch.stack(parts, dim=1).flatten(0, 1).float().cpu())
    return {layer: _require_finite(layer, torch.cat(found.pop(layer))) for layer in layers}


def in_parts(model: nn.Module, loader: Batches, layers: Sequence[str], device: torch.device | str) -> Iterator[Tensor]:
    """Images in batches so small that a pass with gradients takes the same memory whatever the loader's batch size.

    Args:
        model: On the device.
        loader: Calibration images.
        layers: That gradients are taken of.
        device: Where to compute.

    Yields:
        (N, channels, height, width), on the device, with at most `ACTIVATION_NUMBERS` in these layers.
    """
    at_once = None
    for batch, _ in loader:
        images = batch.to(device)
        at_once = at_once or max(1, ACTIVATION_NUMBERS // _numbers_per_image(model, images[:1], layers))
        yield from torch.split(images, at_once)


@torch.no_grad()
def _numbers_per_image(model: nn.Module, image: Tensor, layers: Sequence[str]) -> int:
    counted = [1]
    handles = [
        model.get_submodule(layer).register_forward_hook(
            lambda _, given, output: counted.append(given[0].numel() + output.numel())
        )
        for layer in layers
    ]
    with hooks(handles):
        model(image)
    return sum(counted)


def layer_gradients(
    model: nn.Module, images: Tensor, layers: Sequence[str], probes: int, generator: torch.Generator
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Layer, its input tokens (N, T, I) and the gradients of its output tokens (N, T, O), probe after probe."""
    constants = {name: parameter.detach() for name, parameter in model.named_parameters()}
    with recorded_layers(model, layers) as (inputs, outputs):
        logits = read(model, functional_call(model, constants, (images,)))
    require_finite_logits(logits, model, images)
    for i, projection in enumerate(draw_probes(logits, probes, generator)):
        gradients = torch.autograd.grad(
            logits, [outputs[layer] for layer in layers], projection, retain_graph=i < probes - 1
        )
        for layer, gradient in zip(layers, gradients, strict=True):
            module = model.get_submodule(layer)
            yield (
                layer,
                input_tokens(module, inputs[layer], len(images)),
                output_tokens(module, gradient, len(images)),
            )


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


def draw_probes(logits: Tensor, probes: int, generator: torch.Generator) -> Tensor:
    """Random vectors, orthogonal for an image as far as K allows, shape (probes, N, K); E v v^T = I.

    They are drawn image by image, so they do not depend on the batch size.
    """
    classes = logits.shape[1]
    of_images = []
    for _ in logits:
        frames = torch.split(torch.randn(probes, classes, generator=generator), classes)
        of_images.append(torch.cat([torch.linalg.qr(frame.T).Q.T for frame in frames]))
    return math.sqrt(classes) * torch.stack(of_images, dim=1).to(logits)


@contextmanager
def recorded_layers(
    model: nn.Module, layers: Sequence[str]
) -> Iterator[tuple[dict[str, Tensor], dict[str, GradientEdge]]]:
    """Records input and output of layers in a forward pass, and makes the outputs differentiable."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, GradientEdge] = {}

    def record(layer: str, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        inputs[layer] = arguments[0].detach()
        given = output.requires_grad_() if output.grad_fn is None else output
        outputs[layer] = get_gradient_edge(given)  # of the current output, which later modules may change in place
        return given.clone() if given.is_leaf else None  # a leaf itself must not be changed in place

    handles = [
        model.get_submodule(layer).register_forward_hook(
            lambda _, arguments, output, layer=layer: record(layer, arguments, output)
        )
        for layer in layers
    ]
    with hooks(handles):
        yield inputs, outputs


@torch.no_grad()
def layer_inputs(
    model: nn.Module, loader: Batches, layers: Iterable[str], device: torch.device | str
) -> Iterator[tuple[str, Tensor]]:
    """Layer and its input tokens (N, T, I), batch after batch, from one forward pass over the images.

    Args:
        model: Moved to the device, otherwise not modified.
        loader: Calibration images.
        layers: Names of layers; each runs once in a forward pass.
        device: Where to compute.
    """
    inputs: dict[str, Tensor] = {}
    modules = {layer: model.get_submodule(layer) for layer in layers}
    handles = [
        module.register_forward_pre_hook(lambda _, given, layer=layer: inputs.update({layer: given[0]}))
        for layer, module in modules.items()
    ]
    with evaluation_mode(model.to(device)), hooks(handles):
        for images, _ in bar(loader, "inputs of layers", "batch"):
            model(images.to(device))
            yield from ((layer, input_tokens(modules[layer], inputs.pop(layer), len(images))) for layer in modules)


def input_tokens(layer: nn.Module, inputs: Tensor, images: int) -> Tensor:
    """Inputs of a layer's weight matrix, (N, T, I); the windows of an image are consecutive."""
    if isinstance(layer, nn.Conv2d):
        assert not isinstance(layer.padding, str)
        patches = nn.functional.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        return patches.transpose(1, 2)
    return inputs.reshape(images, -1, inputs.shape[-1])


def output_tokens(layer: nn.Module, outputs: Tensor, images: int) -> Tensor:
    """Outputs of a layer, (N, T, O)."""
    if isinstance(layer, nn.Conv2d):
        return outputs.flatten(2).transpose(1, 2)
    return outputs.reshape(images, -1, outputs.shape[-1])


def _require_finite(layer: str, products: Tensor) -> Tensor:
    if not products.isfinite().all():
        raise LpvitError(
            f"{layer}: its block products on the calibration images are NaN or infinite; check the dense weights"
        )
    return products
