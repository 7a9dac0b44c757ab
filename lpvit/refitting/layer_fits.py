"""Fits of single layers by any structure, so that layers of several structures are fitted in one order.

O = output features of a layer; J = its input features, or one more with a bias.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from lpvit.models.analysis.network import analyse, attention_branches
from lpvit.models.analysis.passes import Batches
from lpvit.refitting.reconstruction import LayerSums, Place, log_errors, sums_in_order


@dataclass(frozen=True)
class FittedLayer:
    """The weights of a layer after a fit.

    Attributes:
        weight: Of a linear layer with the same outputs, (O, J), float64.
        errors: Relative errors on held-out tokens, before and after.
        store: Puts the weights into the compressed layer.
    """

    weight: Tensor
    errors: Sequence[float]
    store: Callable[[nn.Module], None]


class LayerFit(Protocol):
    """How a compressed layer gets its weights once the layers before it have theirs."""

    @property
    def place(self) -> Place:
        """The layer, and what its tokens count."""

    def __call__(self, sums: LayerSums, ridges: Sequence[float] | None = None) -> FittedLayer:
        """Fits the layer.

        Args:
            sums: Of the place.
            ridges: Strengths to choose from; None takes those of the structure.

        Raises:
            LpvitError: The sums do not determine the weights.
        """


@torch.no_grad()
def fit_layers(
    model: nn.Module, compressed: nn.Module, fits: Sequence[LayerFit], loader: Batches, device: torch.device | str
) -> None:
    """Fits layers one after the other, each to the inputs that reach it behind the layers fitted before.

    Args:
        model: Dense; moved to the device, otherwise not modified.
        compressed: With every compressed layer in place; moved to the device, changed.
        fits: In order of execution.
        loader: Calibration images.
        device: Where to compute.

    Raises:
        LpvitError: The activations of a layer are not finite, or do not determine its weights; the layer is named.
    """
    fitted_so_far = deepcopy(model.to(device))
    compressed.to(device)
    network = analyse(model)
    branches = network.branches | attention_branches(network)
    places, errors = [fit.place for fit in fits], []
    sums_of_layers = sums_in_order(model, fitted_so_far, places, loader, device=device, branches=branches)
    for fit, sums in zip(fits, sums_of_layers, strict=True):
        fitted, layer = fit(sums), compressed.get_submodule(sums.layer)
        fitted.store(layer)
        fitted_so_far.set_submodule(sums.layer, layer)
        errors.append(fitted.errors)
    log_errors(errors)
