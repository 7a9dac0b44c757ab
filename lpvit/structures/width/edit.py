"""The edit of a narrower model: shapes of parameters that differ from its source."""

from typing import ClassVar, Literal, Self, final

from timm.layers import Attention
from torch import nn

from lpvit.errors import LpvitError
from lpvit.models.edits import Edit


@final
class NarrowerShapes(Edit):
    """Changes the shapes of parameters and the sizes that layers store.

    Attributes:
        shapes: Parameter name -> shape.
    """

    removes: ClassVar[bool] = True

    kind: Literal["width"] = "width"
    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def between(cls, model: nn.Module, narrower: nn.Module) -> Self:
        """The edit that makes a model as narrow as another with the same parameters."""
        before = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        shapes = {name: tuple(value.shape) for name, value in narrower.state_dict().items()}
        return cls(shapes={name: shape for name, shape in shapes.items() if shape != before[name]})

    def apply(self, model: nn.Module) -> None:
        """Changes the shapes of parameters and the sizes that layers store; the weights are lost.

        Raises:
            LpvitError: The model has no such parameter.
        """
        for name, shape in self.shapes.items():
            place, _, parameter = name.rpartition(".")
            try:
                module = model.get_submodule(place)
                old = module.get_parameter(parameter)
            except AttributeError:
                raise LpvitError(f"shapes: the model has no parameter '{name}'") from None
            setattr(module, parameter, nn.Parameter(old.new_zeros(shape)))
        for module in model.modules():
            _fit_to_weight(module)


def _fit_to_weight(module: nn.Module) -> None:
    """Sets the sizes that a layer stores."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Conv2d):
        module.out_channels, module.in_channels = module.weight.shape[:2]
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, Attention):
        fit_heads(module)


def fit_heads(attention: Attention) -> None:
    """Sets the sizes that timm's attention stores, after the width of the heads has changed."""
    attention.head_dim = len(attention.qkv.weight) // (3 * attention.num_heads)
    attention.attn_dim = attention.head_dim * attention.num_heads
    attention.scale = attention.head_dim**-0.5
