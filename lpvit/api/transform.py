"""The preprocessing of a model, for images of one's own."""

from torch import nn

from lpvit.api.arguments import require_type
from lpvit.api.pruned import Pruned
from lpvit.data.preprocessing import Preprocessing
from lpvit.data.transforms import Transform, create_transform
from lpvit.errors import LpvitError


def transform(model: nn.Module | Pruned) -> Transform:
    """The preprocessing for evaluation: a function from a Pillow image to a normalised tensor (C, H, W), float32.

    Args:
        model: Dense, or from `lpvit.prune` or `lpvit.load`; mean, std and size are saved with it.

    Raises:
        LpvitError: The images of the model are neither grey nor RGB, or it does not say how they are prepared.
    """
    module = model.model if isinstance(model, Pruned) else model
    require_type("model", module, nn.Module, "a model of timm, or the result of lpvit.prune")
    if not getattr(module, "pretrained_cfg", None):
        raise LpvitError(f"model: {type(module).__name__} has no 'pretrained_cfg', which says how images are prepared")
    return create_transform(Preprocessing.from_model(module), None)
