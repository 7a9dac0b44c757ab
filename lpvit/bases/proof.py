"""Changes of a model that are kept only if they leave it the same function."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lpvit.models.analysis.trace import IMAGES, random_images
from lpvit.models.outputs import read
from lpvit.precisions import PRECISIONS, dtype_of

TOLERANCES = {torch.float64: 1e-10} | {
    dtype_of(row.name): row.rewriting for row in PRECISIONS.values() if row.rewriting
}


@dataclass(frozen=True)
class Change:
    """A change of weights.

    Attributes:
        place: What is changed, for messages.
        make: Makes it, in place.
    """

    place: str
    make: Callable[[nn.Module], None]


@dataclass(frozen=True)
class Proof:
    """What a model gave for random images, in float64 and in a dtype of its own.

    Attributes:
        expected: dtype -> logits.
    """

    expected: dict[torch.dtype, Tensor]

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module, dtype: torch.dtype) -> "Proof":
        """The logits of a model in float64, and of the same in the dtype that it is used in."""
        return cls({kind: _logits(model, kind) for kind in (torch.float64, dtype)})

    @torch.no_grad()
    def error(self, model: nn.Module) -> float:
        """The largest change of a logit over the largest logit, in units of what is tolerated: proved up to 1.

        Args:
            model: In float64.
        """
        errors = []
        for kind, expected in self.expected.items():
            change = (_logits(model, kind) - expected).abs().max() / expected.abs().max()
            errors.append(float(change) / TOLERANCES[kind])
        return max(errors)


def _logits(model: nn.Module, dtype: torch.dtype) -> Tensor:
    used = model if next(model.parameters()).dtype == dtype else deepcopy(model).to(dtype)
    return read(used, used(random_images(used, IMAGES)))


def make_proved(model: nn.Module, changes: Sequence[Change], proof: Proof) -> list[str]:
    """Makes all changes or, if the model is no longer the same then, every one that leaves it so.

    Args:
        model: In float64; changed in place.
        changes: Independent of each other.
        proof: Of the model as it shall be.

    Returns:
        The places that were left as they were.
    """
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for change in changes:
        change.make(model)
    if not changes or proof.error(model) <= 1:
        return []
    model.load_state_dict(before)
    if len(changes) == 1:
        return [changes[0].place]
    half = len(changes) // 2
    return [*make_proved(model, changes[:half], proof), *make_proved(model, changes[half:], proof)]
