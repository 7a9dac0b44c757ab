"""What schemes share, and telling those of a model how far a training has come."""

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lpvit.errors import LpvitError


def anneal(model: nn.Module, progress: float) -> None:
    """Updates the schemes of a model with the progress of the training, from 0 to 1."""
    for module in model.modules():
        if hasattr(module, "anneal"):
            module.anneal(progress)  # type: ignore[operator]


def require_chain(model: nn.Module, scheme: str) -> VisionTransformer:
    """Checks that the number of tokens may change between transformer blocks: a plain ViT or DeiT.

    Raises:
        LpvitError: It is another kind of model.
    """
    if not isinstance(model, VisionTransformer) or getattr(model, "rope", None) is not None:
        raise LpvitError(
            f"schemes: '{scheme}' needs a chain of transformer blocks on tokens with absolute positions (ViT, "
            f"DeiT), not {type(model).__name__}; use 'sparse_attention'"
        )
    return model


def keep_rows(tokens: Tensor, rows: Tensor) -> Tensor:
    """Some tokens of every image: (N, T, C) and their numbers (N, K) -> (N, K, C)."""
    return tokens.gather(1, rows.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
