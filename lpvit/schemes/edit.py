"""The edit of a scheme, and adding one to a model."""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import field_serializer
from torch import nn

from lpvit.models.edits import Edit, apply_edit
from lpvit.schemes import kinds
from lpvit.schemes.settings import Scheme
from lpvit.variants import own_settings, variant


class AddedScheme(Edit):
    """A scheme that was added to a model.

    Attributes:
        scheme: Which one, with its settings.
    """

    kind: Literal["schemes"] = "schemes"
    scheme: Scheme

    @field_serializer("scheme")
    def _without_keys_of_others(self, scheme: Scheme) -> dict[str, Any]:
        own = own_settings(variant(kinds, scheme.scheme), scheme)
        return {"scheme": scheme.scheme} | {key: value for part in own for key, value in part.model_dump().items()}

    def apply(self, model: nn.Module) -> None:
        """Adds it; its own weights are drawn.

        Raises:
            LpvitError: The scheme does not fit the model.
        """
        module = variant(kinds, self.scheme.scheme)
        module.add(model, *own_settings(module, self.scheme))
        model.train(model.training)  # new parts too


def schemes_added(settings: Iterable[Any]) -> list[AddedScheme]:
    """The edits of schemes with these settings, as a config has them."""
    return [AddedScheme(scheme=Scheme.model_validate(each)) for each in settings]


def add_scheme(model: nn.Module, scheme: Scheme) -> nn.Module:
    """Adds a scheme to a model, which remembers it: `lpvit.save` keeps it, and training, benchmarks and export run it.

    Args:
        model: From timm; changed in place.
        scheme: Which one, with its settings.

    Raises:
        LpvitError: The scheme does not fit the model.
    """
    return apply_edit(model, AddedScheme(scheme=scheme))
