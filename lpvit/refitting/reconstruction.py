"""Least-squares reconstruction: refits the remaining weights to the outputs of the dense network.

The inputs of a layer are those that reach it in the compressed network, fitted up to there; its targets are the outputs
of the dense layer in the dense network. So it compensates for its own error and that of earlier layers. The last layer
of a transformer block, ``fc2``, is fitted to the dense block's output r + s y (`lpvit.models.analysis.network.Branch`),
so it also compensates for the error of the residual stream r. LayerScale s is multiplied into its weight, and
afterwards divided out. Held-out images select the ridge of every layer, which is then fitted to all images.

N = images of a batch; T = tokens; O, I = output and input features of a layer; J = I, or I + 1 with a bias.

Every image is read once. From layer to layer the passes of both networks resume at the start of a transformer block,
about five forward passes in total for any depth. Two outputs of a transformer block per image are stored in main memory
(2.4 GB for DeiT-B and 2,000 images), and three `Moments` of one layer on the device.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.models.analysis.layers import MatrixLayer, weight_matrix
from lpvit.models.analysis.network import Branch, analyse
from lpvit.models.analysis.passes import Batches, CachedPass, StopPoint, evaluation_mode, run_until
from lpvit.progress import bar
from lpvit.refitting.least_squares import Moments, SingularError, fit_layer

RIDGES = (math.inf, 1.0, 0.1, 1e-2, 1e-3, 1e-4)  # infinity keeps a layer unchanged
HELD_OUT = 5  # every fifth calibration image is held out to select the ridge

_logger = logging.getLogger(__name__)


Choice = Callable[[str, Moments, Tensor, Tensor], Tensor]


@runtime_checkable
class RoundedLayer(Protocol):
    """A linear layer that rounds its inputs and weights, as `lpvit.quantisation.layers.QuantisedLinear`."""

    def multiplied_inputs(self, inputs: Tensor) -> Tensor:
        """The quantised inputs that its weight multiplies, in the shape and dtype of the inputs."""

    def store_rounded(self, weight: Tensor, gram: Tensor, keep: Tensor) -> None:
        """Stores a fitted weight (O, J), given the Gram matrix (J, J) of its inputs and the kept weights (O, I)."""


@dataclass(frozen=True)
class Fit:
    """The part of a layer that is fitted.

    Attributes:
        layer: Its name.
        rows: The outputs of the dense layer that correspond to its outputs.
        start: Weight towards which the ridge regularises, used without a fit, (O, J), float64.
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

    Args:
        model: Dense, on the device.
        pruned: Changed in place; on the device. Layers in int8 are fitted with their quantised inputs, then rounded.
        fits: Of the layers that are fitted, in order of execution.
        loader: Calibration images.
        ridges: Strengths to choose from, as in `fit_rows`; the first of equals.
        device: Where to compute.
        choose: Selects the kept weights again when a layer is reached, from its name, moments, dense weight (O, J)
            and the given kept weights (O, I).

    Returns:
        The state dict of the compressed model, on the CPU.

    Raises:
        LpvitError: The activations of a layer are not finite, or do not determine its weights; the layer is named.
    """
    errors = []
    places = [Place(fit.layer, fit.rows) for fit in fits]
    sums_of_layers = sums_in_order(model, pruned, places, loader, device=device)
    for fit, sums in zip(fits, sums_of_layers, strict=True):
        start, keep = sums.scale * fit.start, fit.keep
        if choose is not None:
            keep = choose(fit.layer, sums.total, start, keep)
        with named_if_singular(fit.layer):
            fitted, *shares = fit_layer(sums.fitted, sums.held_out, start, keep, ridges)
        _store(matrix_layer(pruned, fit.layer), fitted / sums.scale, sums.total.gram, keep)
        errors.append(shares)
    log_errors(errors)
    return {name: value.cpu() for name, value in pruned.state_dict().items()}


@dataclass(frozen=True)
class Place:
    """A layer whose sums are taken.

    Attributes:
        layer: Its name.
        rows: The outputs of the dense layer that its outputs stand for.
        token_weights: What each of the T tokens of an image counts, (T,), not negative; None counts all alike.
    """

    layer: str
    rows: Tensor | slice
    token_weights: Tensor | None = None


@dataclass(frozen=True)
class LayerSums:
    """What the images say about a layer: its inputs in the compressed network, its targets in the dense one.

    Attributes:
        layer: Its name.
        scale: What its outputs are multiplied with to be compared with the targets, (O, 1), float64; 1 but for
            LayerScale.
        fitted: Over the images that candidates are fitted to.
        held_out: Over those that choose among them.
    """

    layer: str
    scale: Tensor
    fitted: Moments
    held_out: Moments

    @property
    def total(self) -> Moments:
        return self.fitted + self.held_out


@torch.no_grad()
def sums_in_order(
    model: nn.Module,
    compressed: nn.Module,
    places: Sequence[Place],
    loader: Batches,
    *,
    device: torch.device | str,
    branches: Mapping[str, Branch] | None = None,
) -> Iterator[LayerSums]:
    """Sums of layers in order of execution; each is asked for when those before are as they shall be.

    Args:
        model: Dense, on the device.
        compressed: On the device; a layer of ``places`` may become another module once its sums were given.
        places: In order of execution.
        loader: Calibration images.
        device: Where to compute.
        branches: Layer -> where its output is added; None takes `lpvit.models.analysis.network.Network.branches`.

    Raises:
        LpvitError: The activations of a layer are not finite.
    """
    network = analyse(model)
    branches = network.branches if branches is None else branches
    with evaluation_mode(model), evaluation_mode(compressed):
        reading = bar(loader, "calibration images", "batch")
        cached, points = [CachedPass(images.cpu()) for images, _ in reading], network.resume_points
        dense_passes = _CachedPasses(model, points, cached, device)
        passes = _CachedPasses(compressed, points, list(cached), device)
        for place in bar(places, "reconstruction", "layer"):
            branch, module = branches.get(place.layer), matrix_layer(model, place.layer)
            scale = _scale(branch, module)[place.rows]
            target = scale * weight_with_bias(module)[place.rows]
            yield LayerSums(place.layer, scale, *_collect_moments(dense_passes, passes, place, branch, target))


@contextmanager
def named_if_singular(layer: str) -> Iterator[None]:
    try:
        yield
    except SingularError:
        raise LpvitError(
            f"{layer}: its inputs on the calibration images do not determine its weights (singular least "
            "squares); use more calibration images"
        ) from None


def log_errors(errors: Sequence[Sequence[float]]) -> None:
    """Relative squared errors of the outputs of every layer, before and after."""
    if errors:
        before, after = (100 * sum(shares) / len(errors) for shares in zip(*errors, strict=True))
        _logger.info(
            "reconstruction: error of the outputs on held-out images %.1f %% -> %.1f %% (mean of %d layers)",
            *(before, after, len(errors)),
        )


@dataclass
class _CachedPasses:
    """Forward passes over all batches, each cached at the last resume point before the layer that is fitted."""

    model: nn.Module
    resume_points: list[str]
    passes: list[CachedPass]
    device: torch.device | str

    def inputs_of(self, layer: str, branch: Branch | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """For every batch the inputs of a layer, (N, T / N, J), and the residual at its output, (N, T / N, O)."""
        module = matrix_layer(self.model, layer)
        stop = StopPoint(layer) if branch is None else StopPoint(layer, branch.block, branch.at_input)
        for number, cached in enumerate(self.passes):
            inputs, residual, self.passes[number] = run_until(self.model, self.resume_points, cached, stop, self.device)
            vectors = _vectors(module, _single(inputs))
            images = len(cached.images)
            if residual is not None:
                residual = _single(residual).reshape(images, -1, residual.shape[-1])
            yield vectors.reshape(images, -1, vectors.shape[-1]), residual


def _collect_moments(
    dense: _CachedPasses, pruned: _CachedPasses, place: Place, branch: Branch | None, target: Tensor
) -> tuple[Moments, Moments]:
    """Moments of a layer over the images to fit and over the held-out ones.

    Args:
        dense: Of the dense model.
        pruned: Of the pruned one.
        place: The layer.
        branch: Where its output is added.
        target: Dense weights of the outputs that are fitted, (O, J) with the J of the dense layer.
    """
    layer = place.layer
    like = weight_with_bias(matrix_layer(pruned.model, layer))
    fitted, held_out = Moments.zeros(like), Moments.zeros(like)
    images_seen = 0
    passes = zip(dense.inputs_of(layer, branch), pruned.inputs_of(layer, branch), strict=True)
    for (dense_inputs, dense_residual), (inputs, residual) in passes:
        targets = dense_inputs @ target.T.to(dense_inputs.dtype)
        if dense_residual is not None and residual is not None:
            targets += dense_residual[..., place.rows] - residual
        weighted = inputs
        if place.token_weights is not None:
            roots = place.token_weights.sqrt().to(inputs)[:, None]
            weighted, targets = roots * inputs, roots * targets
        chooses = (torch.arange(len(inputs), device=inputs.device) + images_seen) % HELD_OUT == 0
        for moments, images in ((fitted, ~chooses), (held_out, chooses)):
            moments.add(weighted[images].flatten(0, 1), targets[images].flatten(0, 1))
        images_seen += len(inputs)
    total = fitted + held_out
    if not (total.gram.isfinite().all() and total.energy.isfinite().all()):
        raise LpvitError(
            f"{layer}: its inputs or outputs on the calibration images are NaN or infinite; check the dense "
            "weights and the mean and std of the images"
        )
    return fitted, held_out


def _single(tensor: Tensor) -> Tensor:
    """Casts to single precision, unless it is double."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _vectors(module: MatrixLayer, inputs: Tensor) -> Tensor:
    """Inputs of the weight matrix, (..., J), images first: patches of a convolution, and 1 for the bias."""
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
    """The factor of the layer's output before it is added, (O, 1), float64; 1 without one."""
    weight = weight_matrix(module)
    if branch is None:
        return torch.ones(len(weight), 1, dtype=torch.float64, device=weight.device)
    scale = branch.scale.to(weight.device, torch.float64)[:, None]
    return scale.where(scale != 0, 1.0)


def _store(module: MatrixLayer, weight: Tensor, gram: Tensor, keep: Tensor) -> None:
    if isinstance(module, RoundedLayer):
        module.store_rounded(weight, gram, keep)
    else:
        store_weight(module, weight)


@torch.no_grad()
def store_weight(module: MatrixLayer, weight: Tensor) -> None:
    """Stores weight and bias, (O, J), in a layer."""
    in_features = weight_matrix(module).shape[1]
    module.weight.copy_(weight[:, :in_features].reshape(module.weight.shape))
    if module.bias is not None:
        module.bias.copy_(weight[:, in_features])
