r"""Gradients of random projections of the logits at the outputs of layers, beside what the layers multiply.

A probe v of an image is a random vector over its logits with E v v^T = I. The probes of an image are orthogonal and of
equal length, which leaves less to chance than independent normal ones, and nothing when there are as many as logits.

N = images of a batch; K = logits; T = tokens of an image in a layer; O, I = output and input features of a layer.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call

from lpvit.models.passes import require_finite_logits


def layer_gradients(
    model: nn.Module, images: Tensor, layers: Sequence[str], probes: int, generator: torch.Generator
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What every layer multiplies, and the gradients of random projections of the logits at what it makes of it.

    Args:
        model: On the device of the images, in evaluation mode; left as it is.
        images: (N, channels, height, width).
        layers: Names of layers; each runs once in a forward pass.
        probes: Random projections v of the logits per image.
        generator: Of the probes, on the CPU.

    Yields:
        Layer, its input tokens (N, T, I) and the gradients of <v, f> at its output tokens (N, T, O), probe after probe.

    Raises:
        LpvitError: An output is not finite.
    """
    constants = {name: parameter.detach() for name, parameter in model.named_parameters()}
    with _recorded_layers(model, layers) as (inputs, outputs):
        logits = functional_call(model, constants, (images,))
    require_finite_logits(logits, model, images)
    for i, projection in enumerate(_probes(logits, probes, generator)):
        gradients = torch.autograd.grad(
            logits, [outputs[layer] for layer in layers], projection, retain_graph=i < probes - 1
        )
        for layer, gradient in zip(layers, gradients, strict=True):
            module = model.get_submodule(layer)
            yield (
                layer,
                _input_tokens(module, inputs[layer], len(images)),
                _output_tokens(module, gradient, len(images)),
            )


def _probes(logits: Tensor, probes: int, generator: torch.Generator) -> Tensor:
    """Random vectors, orthogonal for an image as far as K allows, shape (probes, N, K); E v v^T = I.

    They are drawn image by image so that batches do not matter.
    """
    classes = logits.shape[1]
    of_images = []
    for _ in logits:
        frames = torch.split(torch.randn(probes, classes, generator=generator), classes)
        of_images.append(torch.cat([torch.linalg.qr(frame.T).Q.T for frame in frames]))
    return math.sqrt(classes) * torch.stack(of_images, dim=1).to(logits)


@contextmanager
def _recorded_layers(
    model: nn.Module, layers: Sequence[str]
) -> Iterator[tuple[dict[str, Tensor], dict[str, GradientEdge]]]:
    """Keeps input and output of layers in a forward pass, and makes the outputs differentiable."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, GradientEdge] = {}

    def record(layer: str, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        inputs[layer] = arguments[0].detach()
        given = output.requires_grad_() if output.grad_fn is None else output
        outputs[layer] = get_gradient_edge(given)  # of the output as it is now: what follows may change it in place
        return given.clone() if given.is_leaf else None  # a leaf itself must not be changed in place

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
