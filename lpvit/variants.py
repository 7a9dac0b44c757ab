"""Variants: files of one folder that do one job in different ways, and are chosen by name in the config.

A file that is put into such a folder is there: the config allows its name, and the keys of its class `Settings`, if it
has one, become keys of the section that chooses it. The config reads these files, so they import torch, timm and pandas
inside their functions, and a dry-run stays fast. Where a name is a keyword of Python, its file has an underscore more.
"""

from collections.abc import Callable, Collection
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, Literal, TypeVar, get_type_hints

from pydantic import create_model

from lpvit.settings import Section

_Section = TypeVar("_Section", bound=Section)


def variants(folder: str) -> dict[str, str]:
    """Name of every variant -> module, of a package that holds them; imports none of them."""
    return {file.name.rstrip("_"): f"{folder}.{file.name}" for file in iter_modules(import_module(folder).__path__)}


def variant(folder: str | ModuleType, name: str) -> ModuleType:
    """The module of one variant.

    Args:
        folder: Package that holds it. Code that runs the variant gives the package itself, so that its stage depends on
            all that is in there (`lpvit.store.provenance.source_digest`); settings give the name.
        name: In the config.
    """
    return import_module(variants(folder if isinstance(folder, str) else folder.__name__)[name])


def own_settings(module: ModuleType, section: Section) -> tuple[Section, ...]:
    """The variant's `Settings` with the values of the section that chose it; empty where it has none."""
    if not hasattr(module, "Settings"):
        return ()
    return (module.Settings(**{key: getattr(section, key) for key in module.Settings.model_fields}),)


def chooses(*, keyless: Collection[str] = (), **folders: str) -> Callable[[type[_Section]], type[_Section]]:
    """Makes fields of a section choose variants: allows their names, and adds the keys of their `Settings`.

    Args:
        keyless: Fields whose variants have no `Settings` and so are not imported; they may import anything.
        folders: Field -> package that holds its variants.
    """

    def decorate(section: type[_Section]) -> type[_Section]:
        fields: dict[str, Any] = {}
        for name, folder in folders.items():
            fields[name] = (Literal[tuple(sorted(variants(folder)))], section.model_fields[name])
        for name, folder in folders.items():
            for each in () if name in keyless else sorted(variants(folder)):
                own = getattr(variant(folder, each), "Settings", Section)
                types = get_type_hints(own, include_extras=True)
                fields |= {key: (types[key], field) for key, field in own.model_fields.items()}
        return create_model(
            section.__name__, __base__=section, __module__=section.__module__, __doc__=section.__doc__, **fields
        )

    return decorate
