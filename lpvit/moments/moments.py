r"""Second moments of a layer's inputs and of the gradients at its outputs, in one pass over the images.

A change of the weight matrix by :math:`\Delta W` changes the logits, to first order, by :math:`E (\sum_t g_t^T \Delta W
x_t)^2` with x_t the input of token t and g_t the gradient of a random projection of the logits at its output
(`lpvit.moments.gradients`). With g and x taken as independent this becomes :math:`tr(S \, \Delta W \, C \, \Delta W^T)`
(Kronecker-factored curvature; Martens and Grosse, 2015), with S the mean of :math:`g g^T` and C that of :math:`x x^T`.
Tokens without influence on the logits should not contribute to C, so each is weighted by its :math:`|g_t|^2`: the first
iteration of the power method for the nearest Kronecker product.

N = images of a batch; T = tokens of an image in a layer; O, I = output and input features of a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.models.analysis.passes import Batches, evaluation_mode
from lpvit.moments.gradients import in_parts, layer_gradients
from lpvit.moments.gram import gram
from lpvit.progress import bar

_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class LayerMoments:
    """Second moments of a layer; on the device of the model, in float64.

    Attributes:
        images: Number of images.
        tokens: Of all images together.
        input_mean: (I,); tokens weighted by the squared gradient at their output, or equally.
        input_covariance: C, centred at that mean with the same weights, (I, I).
        output_sensitivity: S, sum over tokens of g g^T, mean over images, (O, O), in squared logits per squared output.
        token_sensitivity: Sum over outputs of g^2, mean over images, for every token position, (T,).
    """

    images: int
    tokens: int
    input_mean: Tensor
    input_covariance: Tensor
    output_sensitivity: Tensor
    token_sensitivity: Tensor


def collect_moments(
    model: nn.Module,
    loader: Batches,
    layers: Sequence[str],
    probes: int,
    device: torch.device | str,
    seed: int = 0,
    *,
    weighted: bool = True,
) -> dict[str, LayerMoments]:
    """Moments of layers from one forward pass and ``probes`` backward passes per image.

    Memory does not grow with the number of images: 8 bytes * (I^2 + O^2) per layer, in addition to the activations of a
    batch. Products are computed in single precision, or the model's if higher, and summed in float64, centred at the
    mean of the first batch, so that inputs far from 0 lose no precision.

    Args:
        model: Moved to the device, otherwise not modified.
        loader: Calibration images.
        layers: Names of layers to describe; each runs once in a forward pass.
        probes: Random projections of the logits per image.
        device: Where to compute.
        seed: Of the probes, which depend neither on the batches nor on the device.
        weighted: Whether tokens are weighted by their gradients in the moments of the inputs.

    Raises:
        LpvitError: There are no images, or an output or a moment is not finite.
    """
    model.to(device)
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, _Sums] = {}
    with evaluation_mode(model):
        for batch in in_parts(model, bar(loader, "moments", "batch"), layers, device):
            of_batch: dict[str, tuple[Tensor, list[Tensor]]] = {}
            for layer, inputs, gradients in layer_gradients(model, batch, layers, probes, generator):
                wide = torch.promote_types(inputs.dtype, torch.float32)
                of_batch.setdefault(layer, (inputs.to(wide), []))[1].append(gradients.to(wide))
            for layer, (inputs, by_probe) in of_batch.items():
                if layer not in sums:
                    sums[layer] = _Sums(inputs, by_probe, weighted)
                sums[layer].add(inputs, by_probe)
    if not sums:
        raise LpvitError("calibration: there are no images")
    return {layer: sums.pop(layer).moments(layer) for layer in layers}


class _Sums:
    """Sums of one layer over the images so far; inputs relative to an origin, so that centring cancels little."""

    def __init__(self, inputs: Tensor, by_probe: Sequence[Tensor], weighted: bool) -> None:
        """Empty sums for inputs (N, T, I) and gradients (N, T, O) of this kind."""
        features, (_, tokens, outputs) = inputs.shape[2], by_probe[0].shape
        self.weighted = weighted
        self.images = 0
        weights = self._weights(_strength(by_probe)).double()
        self.origin = ((weights @ inputs.flatten(0, 1).double()) / weights.sum().clamp_min(_TINY)).to(inputs)
        self.weight, self.first, self.second, self.sensitivity, self.by_place = (
            inputs.new_zeros(shape, dtype=torch.float64)
            for shape in ((), (features,), (features, features), (outputs, outputs), (tokens,))
        )

    def add(self, inputs: Tensor, by_probe: Sequence[Tensor]) -> None:
        """Adds a batch: inputs (N, T, I) and, for every probe, gradients (N, T, O)."""
        self.images += len(inputs)
        strength = _strength(by_probe)
        self.by_place += strength.sum(dim=0, dtype=torch.float64)
        for gradients in by_probe:
            flat = gradients.flatten(0, 1)
            self.sensitivity += gram(flat) / len(by_probe)
        weights = self._weights(strength)
        tokens = inputs.flatten(0, 1) - self.origin
        self.weight += weights.sum(dtype=torch.float64)
        self.first += (tokens * weights[:, None]).sum(dim=0, dtype=torch.float64)
        self.second += gram(tokens * weights.sqrt()[:, None])

    def _weights(self, strength: Tensor) -> Tensor:
        """Of every token in the moments of the inputs, (N T,)."""
        return (strength if self.weighted else torch.ones_like(strength)).flatten()

    def moments(self, layer: str) -> LayerMoments:
        weight = self.weight.clamp_min(_TINY)
        offset = self.first / weight
        covariance = self.second / weight - offset.outer(offset)
        if not (covariance.isfinite().all() and self.sensitivity.isfinite().all()):
            raise LpvitError(
                f"{layer}: the moments of its inputs and gradients on the calibration images are NaN or infinite; "
                "check the dense weights"
            )
        return LayerMoments(
            self.images,
            self.images * len(self.by_place),
            self.origin.double() + offset,
            covariance,
            self.sensitivity / self.images,
            self.by_place / self.images,
        )


def _strength(by_probe: Sequence[Tensor]) -> Tensor:
    """Squared gradient of every token, mean over probes, (N, T)."""
    return torch.stack([gradients.square().sum(dim=-1) for gradients in by_probe]).mean(dim=0)
