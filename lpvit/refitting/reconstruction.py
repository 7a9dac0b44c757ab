"""Least-squares reconstruction: the weights that stay are fitted to the outputs of the dense network.

N = images of a batch; T = tokens; O, I = output and input features of a layer; J = I, or I + 1 with a bias.

Every image is read once; from layer to layer the passes of both networks resume where a transformer block begins, which
comes to some five forward passes in all, however deep the network. For every image two outputs of a block wait in main
memory (2.4 GB for DeiT-B and 2,000 images); on the device lie three `Moments` of one layer.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.models.analysis.layers import MatrixLayer, weight_matrix
from lpvit.models.analysis.network import Branch, understand
from lpvit.models.analysis.passes import Batches, Halt, PausedPass, evaluation_mode, run_until
from lpvit.progress import bar
from lpvit.refitting.least_squares import Moments, SingularError, fit_layer

RIDGES = (math.inf, 1.0, 0.1, 1e-2, 1e-3, 1e-4)  # infinity leaves a layer as it is
HELD_OUT = 5  # one calibration image in so many chooses the ridge

_logger = logging.getLogger(__name__)


Choice = Callable[[str, Moments, Tensor, Tensor], Tensor]


@runtime_checkable
class RoundedLayer(Protocol):
    """A linear layer that rounds its inputs and weights, as `lpvit.quantisation.layers.QuantisedLinear`."""

    def multiplied_inputs(self, inputs: Tensor) -> Tensor:
        """What its weight multiplies, in the shape and dtype of the inputs."""

    def store_rounded(self, weight: Tensor, gram: Tensor, keep: Tensor) -> None:
        """Takes in a fitted weight (O, J), given the Gram matrix (J, J) of its inputs and what is kept, (O, I)."""


@dataclass(frozen=True)
class Fit:
    """What is fitted of a layer.

    Attributes:
        layer: Its name.
        rows: The outputs of the dense layer that its outputs stand for.
        start: Weight that the ridge pulls to and that stays without a fit, (O, J), float64.
        keep: Weights that may differ from 0, (O, I), bool.
    """

    layer: str
    rows: Tensor | slice
    start: Tensor
    keep: Tensor


@torch.no_grad()
def fit_in_order(
    model: nn.Module,
    pruned: nn.Module,
    fits: Sequence[Fit],
    loader: Batches,
    *,
    ridges: Sequence[float] = RIDGES,
    device: torch.device | str,
    choose: Choice | None = None,
) -> dict[str, Tensor]:
    """Fits layers of a compressed model one after the other, in order of execution.

    The inputs of a layer are those that reach it in the compressed network, fitted up to there; its targets are the
    outputs of the dense layer in the dense network. So it makes up for what it and the layers before it lost. The last
    layer of a transformer block, ``fc2``, aims at the dense block's output r + s y
    (`lpvit.models.analysis.network.Branch`): it also makes up for what the residual stream r has lost on the way. It is
    fitted with LayerScale s as a part of its weight, which is then taken out again. Held-out images choose the ridge of
    every layer, which is then fitted to all images.

    Args:
        model: Dense, on the device.
        pruned: Changed in place; on the device. Layers in int8 are fitted to inputs as they round them, then rounded.
        fits: Of the layers that are fitted, in order of execution.
        loader: Calibration images.
        ridges: Strengths to choose from, as in `fit_rows`; of equals the first.
        device: Where to compute.
        choose: Chooses the weights that stay anew when a layer is reached, from its name, moments, dense weight (O, J)
            and those that would stay (O, I).

    Returns:
        The state dict of the compressed model, on the CPU.

    Raises:
        LpvitError: The activations of a layer are not finite, or do not determine its weights; the layer is named.
    """
    network, errors = understand(model), []
    with evaluation_mode(model), evaluation_mode(pruned):
        reading = bar(loader, "calibration images", "batch")
        dense_walk = _Walk(model, network.units, [PausedPass(images.cpu()) for images, _ in reading], device)
        pruned_walk = _Walk(pruned, network.units, list(dense_walk.passes), device)
        for fit in bar(fits, "reconstruction", "layer"):
            branch, module = network.branches.get(fit.layer), matrix_layer(model, fit.layer)
            scale = _scale(branch, module)[fit.rows]
            target, start, keep = scale * weight_with_bias(module)[fit.rows], scale * fit.start, fit.keep
            moments = _collect_moments(dense_walk, pruned_walk, fit, branch, target)
            if choose is not None:
                keep = choose(fit.layer, moments[0] + moments[1], start, keep)
            with _named_if_singular(fit.layer):
                fitted, *shares = fit_layer(*moments, start, keep, ridges)
            _store(matrix_layer(pruned, fit.layer), fitted / scale, (moments[0] + moments[1]).gram, keep)
            errors.append(shares)
    _log_errors(errors)
    return {name: value.cpu() for name, value in pruned.state_dict().items()}


@contextmanager
def _named_if_singular(layer: str) -> Iterator[None]:
    try:
        yield
    except SingularError:
        raise LpvitError(
            f"{layer}: its inputs on the calibration images do not determine its weights (singular least "
            "squares); use more calibration images, or 'reconstruction: none'"
        ) from None


def _log_errors(errors: Sequence[Sequence[float]]) -> None:
    """Shares of the outputs' energy that are missed before and after, of every layer."""
    if errors:
        before, after = (100 * sum(shares) / len(errors) for shares in zip(*errors, strict=True))
        _logger.info(
            "reconstruction: error of the outputs on held-out images %.1f %% -> %.1f %% (mean of %d layers)",
            *(before, after, len(errors)),
        )


@dataclass
class _Walk:
    """The passes of a network over all batches, on their way from layer to layer."""

    model: nn.Module
    units: list[str]
    passes: list[PausedPass]
    device: torch.device | str

    def inputs_of(self, layer: str, branch: Branch | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """For every batch what a layer multiplies, (N, T / N, J), and what its output is added to, (N, T / N, O)."""
        module = matrix_layer(self.model, layer)
        halt = Halt(layer, None if branch is None else branch.block)
        for number, paused in enumerate(self.passes):
            inputs, residual, self.passes[number] = run_until(self.model, self.units, paused, halt, self.device)
            vectors = _vectors(module, _single(inputs))
            images = len(paused.images)
            if residual is not None:
                residual = _single(residual).reshape(images, -1, residual.shape[-1])
            yield vectors.reshape(images, -1, vectors.shape[-1]), residual


def _collect_moments(
    dense: _Walk, pruned: _Walk, fit: Fit, branch: Branch | None, target: Tensor
) -> tuple[Moments, Moments]:
    """Moments of a layer over the images that are fitted and over those held out.

    Args:
        dense: Of the dense model.
        pruned: Of the pruned one.
        fit: Of the layer.
        branch: Where its output is added.
        target: Dense weights of the outputs that are fitted, (O, J) with the J of the dense layer.
    """
    fitted, held_out = Moments.zeros(fit.start), Moments.zeros(fit.start)
    images_seen = 0
    passes = zip(dense.inputs_of(fit.layer, branch), pruned.inputs_of(fit.layer, branch), strict=True)
    for (dense_inputs, dense_residual), (inputs, residual) in passes:
        targets = dense_inputs @ target.T.to(dense_inputs.dtype)
        if dense_residual is not None and residual is not None:
            targets += dense_residual[..., fit.rows] - residual
        chooses = (torch.arange(len(inputs), device=inputs.device) + images_seen) % HELD_OUT == 0
        for moments, images in ((fitted, ~chooses), (held_out, chooses)):
            moments.add(inputs[images].flatten(0, 1), targets[images].flatten(0, 1))
        images_seen += len(inputs)
    total = fitted + held_out
    if not (total.gram.isfinite().all() and total.energy.isfinite()):
        raise LpvitError(
            f"{fit.layer}: its inputs or outputs on the calibration images are NaN or infinite; check the dense "
            "weights and the mean and std of the images"
        )
    return fitted, held_out


def _single(tensor: Tensor) -> Tensor:
    """In single precision, or in double where it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _vectors(module: MatrixLayer, inputs: Tensor) -> Tensor:
    """What the weight matrix multiplies, (..., J), images first: patches of a convolution, and 1 for the bias."""
    if isinstance(module, RoundedLayer):
        inputs = module.multiplied_inputs(inputs)
    if isinstance(module, nn.Conv2d):
        padding: tuple[int, ...] = module.padding  # type: ignore[assignment]
        inputs = nn.functional.unfold(inputs, module.kernel_size, module.dilation, padding, module.stride).mT
    return inputs if module.bias is None else nn.functional.pad(inputs, (0, 1), value=1.0)


def matrix_layer(model: nn.Module, layer: str) -> MatrixLayer:
    module = model.get_submodule(layer)
    assert isinstance(module, MatrixLayer)
    return module


def weight_with_bias(module: MatrixLayer) -> Tensor:
    """Shape (O, J), float64."""
    matrix = weight_matrix(module).double()
    return matrix if module.bias is None else torch.cat([matrix, module.bias.double()[:, None]], dim=1)


def _scale(branch: Branch | None, module: MatrixLayer) -> Tensor:
    """What the layer's output is multiplied with before it is added, (O, 1), float64; 1 where that is nothing."""
    weight = weight_matrix(module)
    if branch is None:
        return torch.ones(len(weight), 1, dtype=torch.float64, device=weight.device)
    scale = branch.scale.to(weight.device, torch.float64)[:, None]
    return scale.where(scale != 0, 1.0)


def _store(module: MatrixLayer, weight: Tensor, gram: Tensor, keep: Tensor) -> None:
    if isinstance(module, RoundedLayer):
        module.store_rounded(weight, gram, keep)
        return
    in_features = weight_matrix(module).shape[1]
    module.weight.copy_(weight[:, :in_features].reshape(module.weight.shape))
    if module.bias is not None:
        module.bias.copy_(weight[:, in_features])
