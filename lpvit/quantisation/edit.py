"""The edit of a quantised model: its layers that multiply in int8."""

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
        """Replaces them by layers with int8 weights of 0.

        Raises:
            AttributeError, TypeError: The model has no such linear layer.
        """
        make_int8(model, self.layers)
