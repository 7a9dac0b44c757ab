"""Least-squares reconstruction: the weights that stay are fitted to the outputs of the dense network.

N = images of a batch; T = tokens; O, I = output and input features of a layer; J = I, or I + 1 with a bias. The bias is
the weight of an input that is always 1 and that no ridge holds: the same weights as with centred inputs and targets,
by one formula for sums, solution and error.

Every image is read once; from layer to layer the passes of both networks resume where a transformer block begins, which
comes to some five forward passes in all, however deep the network. For every image two outputs of a block wait in main
memory (2.4 GB for DeiT-B and 2,000 images); on the device lie three `Moments` of one layer.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.models.blocks import KeepMasks
from lpvit.models.layers import MatrixLayer, weight_matrix
from lpvit.models.network import Branch, understand
from lpvit.models.passes import Batches, Halt, PausedPass, evaluation_mode, run_until
from lpvit.progress import bar
from lpvit.weights.masks import expand_keep_masks, verify_pruned, zero_pruned

RIDGES = (math.inf, 1.0, 0.1, 1e-2, 1e-3, 1e-4)  # infinity leaves a layer as it is
HELD_OUT = 5  # one calibration image in so many chooses the ridge
SINGULAR = 1e-12  # share of an input's squares that the inputs before it do not explain

_ALL = torch.tensor(True)

_logger = logging.getLogger(__name__)


class SingularError(ArithmeticError):
    """Least squares without a single solution, to working precision."""


@dataclass
class Moments:
    """Sums over tokens, from which follow the best weights and the error of any weights.

    Attributes:
        gram: X^T X of the inputs X, (J, J), float64.
        cross: X^T Y of the inputs and the targets Y, (J, O), float64.
        energy: Sum of Y^2, a number, float64.
    """

    gram: Tensor
    cross: Tensor
    energy: Tensor

    @classmethod
    def zeros(cls, weight: Tensor) -> "Moments":
        """Of no tokens yet, for a weight (O, J), on its device."""
        out_features, in_features = weight.shape
        shapes = ((in_features, in_features), (in_features, out_features), ())
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=weight.device) for shape in shapes))

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Takes in tokens: their inputs (T, J) and targets (T, O), multiplied in their own precision."""
        self.gram += inputs.T @ inputs
        self.cross += inputs.T @ targets
        self.energy += targets.square().sum(dtype=torch.float64)

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.gram + other.gram, self.cross + other.cross, self.energy + other.energy)

    def relative_error(self, weight: Tensor) -> float:
        """Sum of (Y - X W^T)^2 for a weight W (O, J), as a share of the sum of Y^2."""
        error = self.energy - 2 * (weight.T * self.cross).sum() + ((weight @ self.gram) * weight).sum()
        return float(error / self.energy.clamp_min(torch.finfo(torch.float64).tiny))


def pruned_weights(
    model: nn.Module,
    keep_masks: KeepMasks,
    block_shape: tuple[int, int],
    loader: Batches | None,
    device: torch.device | str,
) -> dict[str, Tensor]:
    """Weights of the pruned model: those that stay as they were or, given calibration images, reconstructed.

    Args:
        model: Dense model; moved to the device for a reconstruction, otherwise left as it is.
        keep_masks: Which blocks stay.
        block_shape: Rows and columns of a block.
        loader: Calibration images; None leaves the weights that stay as they were.
        device: Where to reconstruct.

    Returns:
        The state dict, on the CPU; pruned weights are exactly zero.

    Raises:
        LpvitError: As `reconstruct`.
    """
    expanded = {name: keep.cpu() for name, keep in expand_keep_masks(model, keep_masks, block_shape).items()}
    if loader is None:
        state = {name: value.to("cpu", copy=True) for name, value in model.state_dict().items()}
        zero_pruned(state, expanded)
    else:
        state = reconstruct(model, keep_masks, block_shape, loader, device=device)
    verify_pruned(state, expanded)
    return state


@torch.no_grad()
def reconstruct(
    model: nn.Module,
    keep_masks: KeepMasks,
    block_shape: tuple[int, int],
    loader: Batches,
    *,
    ridges: Sequence[float] = RIDGES,
    device: torch.device | str,
) -> dict[str, Tensor]:
    """Weights of the pruned model, fitted layer by layer in order of execution.

    The inputs of a layer are those that reach it in the pruned network, fitted up to there; its targets are the outputs
    of the dense layer in the dense network. So it makes up for what it and the layers before it lost. The last layer of
    a transformer block, ``fc2``, aims at the dense block's output r + s y (`lpvit.models.network.Branch`): it also
    makes up for what the residual stream r has lost on the way. It is fitted with LayerScale s as a part of its weight,
    which is then taken out again. Held-out images choose the ridge of every layer, which is then fitted to all images.
    A layer whose blocks all stay is left alone.

    Args:
        model: Dense model; moved to the device, otherwise left as it is.
        keep_masks: Which blocks stay.
        block_shape: Rows and columns of a block.
        loader: Calibration images.
        ridges: Strengths to choose from, as in `fit_rows`; of equals the first.
        device: Where to compute.

    Returns:
        The state dict, on the CPU; pruned weights are exactly zero.

    Raises:
        LpvitError: The activations of a layer are not finite, or do not determine its weights; the layer is named.
    """
    pruned, expanded = _zeroed_copy(model.to(device), keep_masks, block_shape)
    network, errors = understand(model), []
    layers = [layer.name for layer in network.layers if not keep_masks.get(layer.name, _ALL).all()]
    with evaluation_mode(model), evaluation_mode(pruned):
        reading = bar(loader, "calibration images", "batch")
        dense_walk = _Walk(model, network.units, [PausedPass(images.cpu()) for images, _ in reading], device)
        pruned_walk = _Walk(pruned, network.units, list(dense_walk.passes), device)
        for layer in bar(layers, "reconstruction", "layer"):
            branch, keep = network.branches.get(layer), expanded[f"{layer}.weight"].flatten(1)
            scale = _scale(branch, _matrix_layer(model, layer))
            weight = scale * _weight_with_bias(_matrix_layer(model, layer))
            moments = _collect_moments(dense_walk, pruned_walk, layer, branch, weight)
            with _named_if_singular(layer):
                fitted, *shares = fit_layer(*moments, weight, keep, ridges)
            _store(_matrix_layer(pruned, layer), fitted / scale)
            errors.append(shares)
    _log_errors(errors)
    return {name: value.cpu() for name, value in pruned.state_dict().items()}


def _zeroed_copy(
    model: nn.Module, keep_masks: KeepMasks, block_shape: tuple[int, int]
) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model without its pruned weights, and which weights stay."""
    pruned = deepcopy(model)
    expanded = expand_keep_masks(pruned, keep_masks, block_shape)
    zero_pruned(pruned.state_dict(), expanded)
    return pruned, expanded


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


def fit_layer(
    fit: Moments, held_out: Moments, weight: Tensor, keep: Tensor, ridges: Sequence[float]
) -> tuple[Tensor, float, float]:
    """The ridge with the least error on held-out tokens, then the fit to all tokens.

    Args:
        fit: Of the tokens that the candidates are fitted to.
        held_out: Of the tokens that choose among them.
        weight: Dense, (O, J), float64.
        keep: (O, I), bool.
        ridges: Strengths to choose from; of equals the first.

    Returns:
        The fitted weight (O, J), and the relative errors on the held-out tokens without a fit and of the fit chosen.

    Raises:
        SingularError: A system is singular with every ridge.
    """
    before = held_out.relative_error(fit_rows(fit, weight, keep, math.inf))
    errors = {}
    for ridge in ridges:
        with suppress(SingularError):  # too weak for single precision; a stronger one may do
            errors[ridge] = held_out.relative_error(fit_rows(fit, weight, keep, ridge))
    finite = {ridge for ridge in ridges if math.isfinite(ridge)}
    if finite and finite.isdisjoint(errors):
        raise SingularError
    best = min(errors, key=errors.__getitem__)
    return fit_rows(fit + held_out, weight, keep, best), before, errors[best]


def fit_rows(moments: Moments, weight: Tensor, keep: Tensor, ridge: float) -> Tensor:
    r"""Weights that stay, fitted by ridge regression towards the dense ones.

    For every row of the layer, with K the inputs that it keeps and w_0 its dense weights,

    .. math:: (X_K^T X_K + \lambda I) w = X_K^T y + \lambda w_0,

    where lambda is 0 for the bias and else the ridge times the mean square sum of an input, mean diag(X^T X). Rows that
    keep the same inputs, as those of a block do, share one Cholesky factor.

    Args:
        moments: Of X and Y.
        weight: Dense, (O, J), float64.
        keep: (O, I), bool.
        ridge: Relative strength; infinity keeps dense weights and bias.

    Returns:
        Shape (O, J), exactly zero where nothing is kept.

    Raises:
        SingularError: A system is singular.
    """
    in_features = keep.shape[1]
    biases = weight.shape[1] - in_features
    keep = nn.functional.pad(keep, (0, biases), value=True)
    if math.isinf(ridge):
        return weight.where(keep, 0.0)
    strength = ridge * moments.gram.diagonal()[:in_features].mean()
    damping = nn.functional.pad(strength.expand(in_features), (0, biases))
    fitted = torch.zeros_like(weight)
    patterns, pattern_of_row = torch.unique(keep, dim=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        rows, kept = (pattern_of_row == number).nonzero(), pattern.nonzero().squeeze(1)
        dense = weight[rows, kept].T
        system = moments.gram[kept[:, None], kept] + damping[kept].diag()
        right = moments.cross[kept[:, None], rows.T] + damping[kept, None] * dense
        fitted[rows, kept] = torch.cholesky_solve(right, _cholesky(system)).T
    return fitted


def _cholesky(system: Tensor) -> Tensor:
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(system)
    if failed or (factor.diagonal().square() <= SINGULAR * system.diagonal()).any():
        raise SingularError
    return factor


@dataclass
class _Walk:
    """The passes of a network over all batches, on their way from layer to layer."""

    model: nn.Module
    units: list[str]
    passes: list[PausedPass]
    device: torch.device | str

    def inputs_of(self, layer: str, branch: Branch | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """For every batch what a layer multiplies, (N, T / N, J), and what its output is added to, (N, T / N, O)."""
        module = _matrix_layer(self.model, layer)
        halt = Halt(layer, None if branch is None else branch.block)
        for number, paused in enumerate(self.passes):
            inputs, residual, self.passes[number] = run_until(self.model, self.units, paused, halt, self.device)
            vectors = _vectors(module, _single(inputs))
            images = len(paused.images)
            if residual is not None:
                residual = _single(residual).reshape(images, -1, residual.shape[-1])
            yield vectors.reshape(images, -1, vectors.shape[-1]), residual


def _collect_moments(
    dense: _Walk, pruned: _Walk, layer: str, branch: Branch | None, weight: Tensor
) -> tuple[Moments, Moments]:
    """Moments of a layer over the images that are fitted and over those held out, for its dense weight (O, J)."""
    fit, held_out = Moments.zeros(weight), Moments.zeros(weight)
    images_seen = 0
    passes = zip(dense.inputs_of(layer, branch), pruned.inputs_of(layer, branch), strict=True)
    for (dense_inputs, dense_residual), (inputs, residual) in passes:
        targets = dense_inputs @ weight.T.to(dense_inputs.dtype)
        if dense_residual is not None and residual is not None:
            targets += dense_residual - residual
        chooses = (torch.arange(len(inputs), device=inputs.device) + images_seen) % HELD_OUT == 0
        for moments, images in ((fit, ~chooses), (held_out, chooses)):
            moments.add(inputs[images].flatten(0, 1), targets[images].flatten(0, 1))
        images_seen += len(inputs)
    total = fit + held_out
    if not (total.gram.isfinite().all() and total.energy.isfinite()):
        raise LpvitError(
            f"{layer}: its inputs or outputs on the calibration images are NaN or infinite; check the dense weights "
            "and the mean and std of the images"
        )
    return fit, held_out


def _single(tensor: Tensor) -> Tensor:
    """In single precision, or in double where it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _vectors(module: MatrixLayer, inputs: Tensor) -> Tensor:
    """What the weight matrix multiplies, (..., J), images first: patches of a convolution, and 1 for the bias."""
    if isinstance(module, nn.Conv2d):
        padding: tuple[int, ...] = module.padding  # type: ignore[assignment]
        inputs = nn.functional.unfold(inputs, module.kernel_size, module.dilation, padding, module.stride).mT
    return inputs if module.bias is None else nn.functional.pad(inputs, (0, 1), value=1.0)


def _matrix_layer(model: nn.Module, layer: str) -> MatrixLayer:
    module = model.get_submodule(layer)
    assert isinstance(module, MatrixLayer)
    return module


def _weight_with_bias(module: MatrixLayer) -> Tensor:
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


def _store(module: MatrixLayer, weight: Tensor) -> None:
    in_features = weight_matrix(module).shape[1]
    module.weight.copy_(weight[:, :in_features].reshape(module.weight.shape))
    if module.bias is not None:
        module.bias.copy_(weight[:, in_features])
