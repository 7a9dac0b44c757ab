"""The edit of a quantised model: which of its layers multiply in int8."""

from typing import Literal, final

from torch import nn

from lpvit.models.edits import Edit
from lpvit.quantisation.layers import make_int8


@final
class Int8Layers(Edit):
    """Linear layers that multiply in int8.

    Attributes:
        layers: Their names.
    """

    kind: Literal["quantisation"] = "quantisation"
    layers: tuple[str, ...]

    def apply(self, model: nn.Module) -> None:
        """Puts layers with int8 weights of 0 in their place.

        Raises:
            AttributeError, TypeError: The model has no such linear layer.
        """
        make_int8(model, self.layers)
