"""Settings of schemes."""

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from lpvit.errors import LpvitError
from lpvit.settings import Section
from lpvit.strategies import Registry

if TYPE_CHECKING:
    from torch import nn


class Scheme(Section):
    """A scheme that saves computation besides pruning.

    ``Scheme(scheme="token_merging", merged_tokens=8)`` creates the one of that name.
    """

    registry: ClassVar = Registry("lpvit.schemes.kinds", tag="scheme")
    takes_over: ClassVar[frozenset[str]]  # parts of a model that no other scheme may change: attention, tokens

    scheme: str

    if TYPE_CHECKING:  # it takes the keys of the scheme that it names

        def __init__(self, **values: Any) -> None: ...

    def __new__(cls, **values: Any) -> Self:
        if cls is not Scheme:
            return super().__new__(cls)
        try:
            kind: type[Self] = cls.registry[cls.registry.with_tag(values)["scheme"]]
        except ValueError as error:
            raise LpvitError(f"Scheme: {error}") from None
        return super().__new__(kind)

    def add(self, model: "nn.Module") -> None:
        """Adds it to a model in place, by hooks and submodules; see `lpvit.schemes.kinds`.

        Raises:
            LpvitError: The model is not of the kind that the scheme works on.
        """
        raise NotImplementedError


def require_compatible(schemes: Iterable[Scheme]) -> None:
    """Checks that no two schemes of a model take over the same part of it.

    Raises:
        ValueError: Two do; they are named.
    """
    for one, other in combinations(schemes, 2):
        for part in sorted(one.takes_over & other.takes_over):
            raise ValueError(f"'{one.scheme}' and '{other.scheme}' both change the {part} of a model; keep one of them")


AnyScheme = Annotated[Scheme, Scheme.registry]


def read_scheme(values: Mapping[str, Any]) -> Scheme:
    """A scheme as files have it; those of format 1 have the keys of every scheme."""
    kinds = Scheme.registry
    own = kinds[kinds.with_tag(values)["scheme"]]
    others = {key for kind in kinds.values() for key in kind.model_fields} - own.model_fields.keys()
    scheme: Scheme = own.model_validate({key: value for key, value in values.items() if key not in others})
    return scheme
