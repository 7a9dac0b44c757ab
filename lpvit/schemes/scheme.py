"""Adds schemes to models, and updates them with the progress of a training."""

from collections.abc import Sequence

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.schemes.settings import SCHEMES, Scheme
from lpvit.variants import own_settings, variant


def add_scheme(model: nn.Module, scheme: Scheme) -> nn.Module:
    """Adds a scheme to a model. `lpvit.save` stores it, and training, benchmarks and export include it.

    Args:
        model: From timm; changed in place.
        scheme: Its kind and settings.

    Raises:
        LpvitError: The scheme does not fit the model.
    """
    module = variant(SCHEMES, scheme.scheme)
    module.add(model, *own_settings(module, scheme))
    model.train(model.training)  # for the new parts
    model.lpvit_schemes = [*schemes_of(model), scheme]  # type: ignore[assignment]
    return model


def schemes_of(model: nn.Module) -> Sequence[Scheme]:
    """The schemes that were added to a model, in that order."""
    return getattr(model, "lpvit_schemes", ())


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
