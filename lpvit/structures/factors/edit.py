"""The edit of a model with low-rank factors."""

from typing import ClassVar, Literal

from pydantic import PositiveInt
from torch import nn

from lpvit.errors import LpvitError
from lpvit.models.additions import replace_module
from lpvit.models.analysis.layers import MatrixLayer
from lpvit.models.edits import Edit
from lpvit.structures.factors.layers import CLASSES
from lpvit.structures.factors.settings import Form


class LowRankLayers(Edit):
    """Layers that were replaced by two smaller ones.

    Attributes:
        form: Of the factors.
        ranks: Layer -> its rank.
    """

    removes: ClassVar[bool] = True

    kind: Literal["factors"] = "factors"
    form: Form
    ranks: dict[str, PositiveInt]

    def apply(self, model: nn.Module) -> None:
        """Replaces the layers; the weights are lost.

        Raises:
            LpvitError: The model has no such layer, or the rank does not fit it.
        """
        for name, rank in self.ranks.items():
            try:
                layer = model.get_submodule(name)
            except AttributeError:
                raise LpvitError(f"factors: the model has no layer '{name}'") from None
            if not isinstance(layer, MatrixLayer):
                raise LpvitError(
                    f"factors: '{name}' is a {type(layer).__name__}, expected a linear layer or convolution"
                )
            replace_module(model, name, CLASSES[self.form].like(layer, rank))
