"""Curves scaled by what refitting gives: without it, one structure is favoured by chance.

Refitting lowers the distortion of some blocks by a factor of ten and that of factors hardly at all. So a few options of
every layer are refitted, each with all other layers dense, and the distortion that is left is measured on images that
the fit has not seen. The logarithm of measured over predicted is interpolated between these options.

O = output features of a layer; J = its input features, or one more with a bias; N = images.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lpvit.allocation.ranking import in_pruning_order
from lpvit.models.analysis.layers import MatrixLayer
from lpvit.models.analysis.network import analyse, attention_branches
from lpvit.models.analysis.passes import Batches, RecordedPass, evaluation_mode, replaced_forwards
from lpvit.models.outputs import read
from lpvit.refitting.layer_fits import LayerFit
from lpvit.refitting.reconstruction import HELD_OUT, matrix_layer, sums_in_order
from lpvit.structures.structure import Options

SHARES = (0.3, 0.5, 0.7, 0.85, 0.95)  # of the weights of a layer that are removed at the options that are refitted
RIDGES = (0.1, 1e-3)
FLOAT32 = 4  # bytes
IMAGES = 64  # that the options are measured on, of those held out

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Every option of a structure for a layer, by rising number of removed pieces.

    Attributes:
        removed: Weights removed, strictly rising from 0.
        bytes: Removed from a saved model, from 0; those of a layer that stores more than when dense are negative.
        squared_norm: Sum of squares of the removed pieces.
        distortion: In squared logits per image.
    """

    removed: NDArray[np.int64]
    bytes: NDArray[np.int64]
    squared_norm: Floats
    distortion: Floats

    def near(self, shares: Sequence[float]) -> list[int]:
        """The options that remove the nearest shares of the weights, without those that remove none or all."""
        nearest = {int(np.abs(self.removed - share * self.removed[-1]).argmin()) for share in shares}
        return sorted(nearest - {0, len(self.removed) - 1})

    def scaled(self, measured: Mapping[int, float]) -> "Curve":
        """The curve through measured distortions (option -> distortion), never falling."""
        known = {
            option: np.log(value / self.distortion[option])
            for option, value in measured.items()
            if value > 0 and self.distortion[option] > 0
        }
        if not known:
            return self
        logarithm = np.interp(self.removed, self.removed[list(known)], list(known.values()))
        distortion = np.maximum.accumulate(self.distortion * np.exp(logarithm))
        return replace(self, distortion=distortion)


def curves_of(options: Options) -> dict[str, Curve]:
    """Layer -> the curve that a structure offers, linear between its points."""
    points = {str(layer): of_layer for layer, of_layer in options.curves.groupby("layer", sort=False)}
    found = {}
    for name, of_layer in options.blocks.groupby("layer", sort=False):
        pieces, curve = in_pruning_order(of_layer), points[str(name)]
        removed, size, norm = (
            np.append(0, pieces[column].to_numpy().cumsum()) for column in ("weights", "bytes", "squared_norm")
        )
        size[1:] -= size[-1] - FLOAT32 * removed[-1]  # padding, which a dense layer has not
        distortion = np.interp(np.arange(len(removed)), curve["blocks_pruned"], curve["distortion"])
        found[str(name)] = Curve(removed.astype(np.int64), size, norm, distortion)
    return found


@torch.no_grad()
def refitted_distortions(
    model: nn.Module,
    images: Batches,
    fits: Mapping[str, Sequence[Callable[[], LayerFit]]],
    device: torch.device | str,
) -> dict[str, list[float]]:
    """Distortion of fits of single layers, with all other layers dense.

    Args:
        model: Dense; moved to the device, otherwise not modified.
        images: Calibration images.
        fits: Layer -> what is tried there, made when the layer is reached; layers in order of execution.
        device: Where to compute.

    Returns:
        Layer -> a distortion for each fit, in squared logits per image.

    Raises:
        LpvitError: Something is not finite, or does not determine a layer.
    """
    model.to(device)
    network = analyse(model)
    branches = network.branches | attention_branches(network)
    places = [of_layer[-1]().place for of_layer in fits.values() if of_layer]
    found: dict[str, list[float]] = {layer: [] for layer in fits}
    with evaluation_mode(model):
        dense = RecordedPass.of(model, network.resume_points, _held_out(images).to(device), fits)
        for sums in sums_in_order(model, model, places, images, device=device, branches=branches):
            weights = [make()(sums, RIDGES).weight for make in fits[sums.layer]]
            found[sums.layer] = list(_distortions(model, dense, sums.layer, weights))
    return found


def _held_out(images: Batches) -> Tensor:
    """The first images that fits do not see, (N, channels, height, width)."""
    chosen: list[Tensor] = []
    seen = 0
    for batch, _ in images:
        chosen.append(batch[(torch.arange(len(batch)) + seen) % HELD_OUT == 0])
        seen += len(batch)
        if sum(map(len, chosen)) >= IMAGES:
            break
    return torch.cat(chosen)[:IMAGES]


def _distortions(model: nn.Module, dense: RecordedPass, layer: str, weights: Sequence[Tensor]) -> Iterator[float]:
    """Mean squared change of the logits with each weight (O, J) in the place of a layer's own."""
    images, forwards = dense.resumed(layer)
    module = matrix_layer(model, layer)
    for weight in weights:
        with replaced_forwards(model, forwards | {layer: _Changed(module, weight)}):
            change = read(model, model(images)) - dense.logits
        yield float(change.double().square().sum(dim=1).mean())


class _Changed:
    """The forward of a layer with another weight and bias."""

    def __init__(self, module: MatrixLayer, weight: Tensor) -> None:
        features = module.weight[0].numel()
        self.module = module
        self.weight = weight[:, :features].to(module.weight).reshape(module.weight.shape)
        self.bias = None if module.bias is None else weight[:, features].to(module.bias)

    def __call__(self, inputs: Tensor) -> Tensor:
        if isinstance(self.module, nn.Conv2d):
            convolved: Tensor = self.module._conv_forward(inputs, self.weight, self.bias)
            return convolved
        return nn.functional.linear(inputs, self.weight, self.bias)
