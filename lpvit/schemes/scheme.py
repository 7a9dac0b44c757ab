"""What schemes share, and telling those of a model how far a training has come."""

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lpvit.errors import LpvitError


def anneal(model: nn.Module, progress: float) -> None:
    """Tells the schemes of a model how much of the training is done, from 0 to 1."""
    for module in model.modules():
        if hasattr(module, "anneal"):
            module.anneal(progress)  # type: ignore[operator]


def require_chain(model: nn.Module, scheme: str) -> VisionTransformer:
    """A model whose tokens may become fewer on the way: a plain ViT or DeiT.

    Raises:
        LpvitError: It is another kind of model.
    """
    if not isinstance(model, VisionTransformer) or getattr(model, "rope", None) is not None:
        raise LpvitError(
            f"schemes: '{scheme}' needs a chain of blocks on tokens that carry their own position (ViT, DeiT), "
            f"{type(model).__name__} is none; use 'sparse_attention'"
        )
    return model


def keep_rows(tokens: Tensor, rows: Tensor) -> Tensor:
    """Some tokens of every image: (N, T, C) and their numbers (N, K) -> (N, K, C)."""
    return tokens.gather(1, rows.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
