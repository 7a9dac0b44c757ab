"""All sections of the config."""

from collections.abc import Iterator
from typing import Any, get_args

from lpvit.settings import Section
from lpvit.strategies import Registry, registry_of


def sections_of(*kinds: type[Section]) -> Iterator[type[Section]]:
    """These sections and those within them, strategies included."""
    for kind in kinds:
        if "registry" not in vars(kind):  # not an interface
            yield kind
            for field in kind.model_fields.values():
                yield from _named_by(registry_of(field) or field.annotation)


def _named_by(kind: Any) -> Iterator[type[Section]]:
    for each in [kind] if isinstance(kind, Registry) else get_args(kind):
        yield from sections_of(*each.values()) if isinstance(each, Registry) else _named_by(each)
    if isinstance(kind, type) and issubclass(kind, Section):
        yield from sections_of(kind)
