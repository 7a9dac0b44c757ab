"""The edit of a model in aligned bases: other weights, and biases where it had none."""

from typing import Literal

from torch import nn

from lpvit.bases.folding import give_biases
from lpvit.errors import LpvitError
from lpvit.models.edits import Edit


class AlignedBases(Edit):
    """A model that was written down in other bases.

    Attributes:
        freedoms: Those that were used somewhere.
        biases: Layers that have a bias now and had none.
    """

    kind: Literal["bases"] = "bases"
    freedoms: tuple[str, ...]
    biases: tuple[str, ...] = ()

    def apply(self, model: nn.Module) -> None:
        """Gives layers their biases.

        Raises:
            LpvitError: The model has no such linear layer.
        """
        for layer in self.biases:
            try:
                found: nn.Module | None = model.get_submodule(layer)
            except AttributeError:
                found = None
            if not isinstance(found, nn.Linear):
                raise LpvitError(f"bases: the model has no linear layer '{layer}' that could have a bias")
        give_biases(model, self.biases)
