"""Hidden units of an MLP by what they add to the residual stream: variance times the squared column that reads them."""

from functools import partial

import torch
from torch import Tensor, nn

from lpvit.bases.folding import linear
from lpvit.bases.moments import Moments, Spread
from lpvit.bases.proof import Change
from lpvit.bases.wiring import Hidden, Wiring


def changes(model: nn.Module, wiring: Wiring, moments: Moments) -> list[Change]:
    """One for every MLP."""
    return [
        Change(hidden.reader, partial(_sort, hidden=hidden, units=moments.hidden[hidden.reader]))
        for hidden in wiring.hidden
    ]


def obstacles(model: nn.Module, wiring: Wiring) -> dict[str, str]:
    """None is known: units may stand in any order, with gates and norms too."""
    return {}


@torch.no_grad()
def _sort(model: nn.Module, hidden: Hidden, units: Spread) -> None:
    reader = linear(model, hidden.reader)
    energy = units.covariance.flatten().to(reader.weight) * reader.weight.square().sum(dim=0)
    order = energy.argsort(descending=True, stable=True)
    reader.weight.copy_(reader.weight[:, order])
    parameters: list[Tensor] = []
    for rows in hidden.rows:
        layer = linear(model, rows.layer)
        parameters += [part[rows.slice] for part in (layer.weight, layer.bias) if part is not None]
    if hidden.norm is not None:
        parameters += model.get_submodule(hidden.norm).parameters(recurse=False)
    for parameter in parameters:
        parameter.copy_(parameter[order])
