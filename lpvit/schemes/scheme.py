"""Adding schemes to models, and telling them how far a training has come."""

from collections.abc import Sequence

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.schemes.settings import SCHEMES, Scheme
from lpvit.variants import own_settings, variant


def add_scheme(model: nn.Module, scheme: Scheme) -> nn.Module:
    """Adds a scheme to a model, which remembers it: `lpvit.save` keeps it, and training, benchmarks and export run it.

    Args:
        model: From timm; changed in place.
        scheme: Which one, with its settings.

    Raises:
        LpvitError: The scheme does not fit the model.
    """
    module = variant(SCHEMES, scheme.scheme)
    module.add(model, *own_settings(module, scheme))
    model.train(model.training)  # new parts too
    model.lpvit_schemes = [*schemes_of(model), scheme]  # type: ignore[assignment]
    return model


def schemes_of(model: nn.Module) -> Sequence[Scheme]:
    """The schemes that were added to a model, in that order."""
    return getattr(model, "lpvit_schemes", ())


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
