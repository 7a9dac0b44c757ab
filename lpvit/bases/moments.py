"""Means and covariances of what passes through a model, summed over the calibration images in one pass.

N = images of a batch; T = tokens; G = groups of features that vary together: heads, or single hidden units;
d = features of a group.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from lpvit.bases.wiring import Heads, Rows, Wiring
from lpvit.errors import LpvitError
from lpvit.models.analysis.passes import Batches, evaluation_mode
from lpvit.models.analysis.trace import hooks
from lpvit.progress import bar


@dataclass
class Spread:
    """Sums over tokens of vectors in groups.

    Attributes:
        count: Tokens.
        total: Sums, (G, d), float64.
        squares: Sums of outer products within the groups, (G, d, d), float64.
    """

    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    squares: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def add(self, vectors: Tensor) -> None:
        """Takes in vectors (..., G, d), multiplied in their own precision and summed in float64."""
        vectors = vectors.flatten(0, -3)
        grouped = vectors.transpose(0, 1)  # (G, T, d)
        self.count += len(vectors)
        self.total = self.total.to(vectors.device) + vectors.sum(dim=0, dtype=torch.float64)
        self.squares = self.squares.to(vectors.device) + (grouped.mT @ grouped).double()

    @property
    def mean(self) -> Tensor:
        """Shape (G, d), float64."""
        return self.total / self.count

    @property
    def second_moment(self) -> Tensor:
        """Shape (G, d, d), float64."""
        return self.squares / self.count

    @property
    def covariance(self) -> Tensor:
        """Shape (G, d, d), float64."""
        return self.second_moment - self.mean[:, :, None] * self.mean[:, None, :]


@dataclass(frozen=True)
class Moments:
    """What `moments_of` measured.

    Attributes:
        norms: Norm -> what its first reader multiplies, G = 1.
        queries: Attention -> its queries, a group a head.
        keys: The same for keys, centred over the tokens of an image: softmax does not see what all keys share.
        mixed: The same for the values that attention has mixed.
        hidden: Layer that reads hidden units -> those, a group each.
    """

    norms: dict[str, Spread]
    queries: dict[str, Spread]
    keys: dict[str, Spread]
    mixed: dict[str, Spread]
    hidden: dict[str, Spread]


@torch.no_grad()
def moments_of(model: nn.Module, wiring: Wiring, loader: Batches, device: torch.device | str) -> Moments:
    """One pass over the images.

    Memory does not grow with their number: D^2 a norm, d^2 a head and a number a hidden unit.

    Args:
        model: With the affine parts of its norms folded away; moved to the device.
        wiring: Of the model.
        loader: Calibration images.
        device: Where to compute.

    Raises:
        LpvitError: There are no images, or something is not finite.
    """
    moments = Moments({}, {}, {}, {}, {})
    model.to(device)
    with evaluation_mode(model), hooks(_handles(model, wiring, moments)):
        for images, _ in bar(loader, "moments", "batch"):
            model(images.to(device, next(model.parameters()).dtype))
    for kind in (moments.norms, moments.queries, moments.keys, moments.mixed, moments.hidden):
        for place, spread in kind.items():
            if not spread.count:
                raise LpvitError("loader: found no images, expected calibration images")
            if not spread.squares.isfinite().all():
                raise LpvitError(
                    f"{place}: what passes through it on the calibration images is NaN or infinite; check the dense "
                    "weights and the mean and std of the images"
                )
    return moments


def _handles(model: nn.Module, wiring: Wiring, moments: Moments) -> list[torch.utils.hooks.RemovableHandle]:
    handles = []
    for norm in wiring.norms:
        if norm.readers:
            spread = moments.norms[norm.name] = Spread()
            handles.append(_on_input(model, norm.readers[0], spread, partial(torch.unsqueeze, dim=-2)))
    for heads in wiring.heads:
        spread = moments.mixed[heads.name] = Spread()
        handles.append(_on_input(model, heads.output, spread, partial(_split, heads=heads)))
        moments.queries[heads.name], moments.keys[heads.name] = Spread(), Spread()
        handles.append(_on_rows(model, heads, heads.queries, moments.queries[heads.name], centred=False))
        handles.append(_on_rows(model, heads, heads.keys, moments.keys[heads.name], centred=True))
    for hidden in wiring.hidden:
        spread = moments.hidden[hidden.reader] = Spread()
        handles.append(_on_input(model, hidden.reader, spread, partial(torch.unsqueeze, dim=-1)))
    return handles


def _on_input(
    model: nn.Module, layer: str, spread: Spread, grouped: Callable[[Tensor], Tensor]
) -> torch.utils.hooks.RemovableHandle:
    return model.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: spread.add(grouped(inputs[0])))


def _on_rows(
    model: nn.Module, heads: Heads, rows: Rows, spread: Spread, *, centred: bool
) -> torch.utils.hooks.RemovableHandle:
    def add(output: Tensor) -> None:
        vectors = output[..., rows.slice]
        if centred:
            vectors = vectors - vectors.mean(dim=-2, keepdim=True)
        spread.add(_split(vectors, heads))

    return model.get_submodule(rows.layer).register_forward_hook(lambda _, __, output: add(output))


def _split(vectors: Tensor, heads: Heads) -> Tensor:
    """(..., H * d) -> (..., H, d)."""
    return vectors.reshape(*vectors.shape[:-1], heads.heads, -1)
