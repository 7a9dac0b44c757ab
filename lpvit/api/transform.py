"""The preprocessing of a model, for images of one's own."""

from torch import nn

from lpvit.api.pruned import Pruned
from lpvit.data.preprocessing import Preprocessing
from lpvit.data.transforms import Transform, create_transform


def transform(model: nn.Module | Pruned) -> Transform:
    """The preprocessing for evaluation: a function from a Pillow image to a normalised tensor (C, H, W), float32.

    Args:
        model: Dense, or from `lpvit.prune` or `lpvit.load`; mean, std and size are saved with it.

    Raises:
        LpvitError: The images of the model are neither grey nor RGB.
    """
    module = model.model if isinstance(model, Pruned) else model
    return create_transform(Preprocessing.from_model(module), None)
