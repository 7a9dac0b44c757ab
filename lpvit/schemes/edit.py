"""The edit of a scheme, and a function that adds one to a model."""

from collections.abc import Iterable
from typing import Any, Literal, final

from pydantic import field_validator
from torch import nn

from lpvit.errors import LpvitError
from lpvit.models.edits import Edit, apply_edit, edits_of
from lpvit.schemes import kinds as _  # noqa: F401 - stages that import this module depend on all of them
from lpvit.schemes.settings import AnyScheme, Scheme, read_scheme, require_compatible


@final
class AddedScheme(Edit):
    """A scheme that was added to a model.

    Attributes:
        scheme: Its kind and settings.
    """

    kind: Literal["schemes"] = "schemes"
    scheme: AnyScheme

    @field_validator("scheme", mode="before")
    @classmethod
    def _read(cls, scheme: Any) -> Any:
        return read_scheme(scheme) if isinstance(scheme, dict) else scheme

    def apply(self, model: nn.Module) -> None:
        """Adds the scheme; its own weights are initialised at random.

        Raises:
            LpvitError: The scheme does not fit the model.
        """
        self.scheme.add(model)
        model.train(model.training)  # for the new parts


def schemes_added(settings: Iterable[Any]) -> list[AddedScheme]:
    """The edits of schemes with these settings of a config."""
    return [AddedScheme(scheme=each) for each in settings]


def add_scheme(model: nn.Module, scheme: Scheme) -> nn.Module:
    """Adds a scheme to a model. `lpvit.save` stores it, and training, benchmarks and export include it.

    Args:
        model: From timm; changed in place.
        scheme: Its kind and settings.

    Raises:
        LpvitError: The scheme does not fit the model, or another one that it has.
    """
    if not isinstance(scheme, Scheme):
        raise LpvitError(f"scheme: found {type(scheme).__name__}, expected an lpvit.Scheme")
    others = [edit.scheme for edit in edits_of(model) if isinstance(edit, AddedScheme)]
    try:  # not where a file is read, which may be older than this check
        require_compatible([*others, scheme])
    except ValueError as error:
        raise LpvitError(f"schemes: {error}") from None
    return apply_edit(model, AddedScheme(scheme=scheme))
