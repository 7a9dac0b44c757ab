"""Strategies: alternatives for one task, each in one file of a folder, selected by name in the config.

A file contains one class derived from the interface of the folder: its fields are the keys of the strategy, its methods
do the work. A new strategy needs only a new file: the config allows its name and its keys, the reference lists them,
and the value of the key that selects it is an instance of its class.

The config imports these files, so they import torch, timm and pandas inside their functions, so a dry run is fast.
Where a name is a keyword of Python, its file has an underscore more.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from lpvit.errors import nearest


class Registry(Mapping[str, type[Any]]):
    """Name -> class, of the strategies of a folder; a class attribute of their interface.

    As the annotation of a key it accepts a strategy: its name (if names are allowed alone), its name with its keys, or
    an instance. ``Budget.allocator`` is ``Annotated[Allocator, Allocator.registry]``.
    """

    def __init__(self, folder: str, tag: str = "name", files: Sequence[str] = (), default: str | None = None) -> None:
        """The folder's files are imported when the first strategy is requested.

        Args:
            folder: Package of the strategies.
            tag: Field of the classes with the name, which is that of the file.
            files: Modules that a strategy must have, if every strategy is a folder; the first defines the class.
            default: Name if the tag is missing.
        """
        self.folder, self.tag, self.files, self.default = folder, tag, files, default

    def __set_name__(self, interface: type, _: str) -> None:
        self.interface = interface

    @cached_property
    def _classes(self) -> dict[str, type[Any]]:
        modules = module_names(self.folder)
        if self.files:
            folders = {name: folder for name, folder in modules.items() if _has(folder, self.files)}
            modules = {name: f"{folder}.{self.files[0]}" for name, folder in folders.items()}
        return {name: class_in(module, self.interface, self.tag, name) for name, module in sorted(modules.items())}

    def __getitem__(self, name: str) -> type[Any]:
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    def __hash__(self) -> int:  # pydantic hashes annotations
        return hash((self.folder, self.tag))

    def with_tag(self, given: Any) -> Any:
        """Converts a name to keys with values, adds a missing tag, and returns everything else unchanged.

        Raises:
            ValueError: There is no strategy of that name.
        """
        if isinstance(given, str) and self.default is None:
            given = {self.tag: given}
        if not isinstance(given, Mapping):
            return given
        name = given.get(self.tag, self.default)
        if name is None:
            raise ValueError(f"{self.tag}: missing; known are {', '.join(self)}")
        if not isinstance(name, str) or name not in self:
            raise ValueError(f"no '{name}'{nearest(str(name), self)}")
        return {self.tag: name, **given}

    def __get_pydantic_core_schema__(self, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {name: handler.generate_schema(each) for name, each in self.items()}
        union = core_schema.tagged_union_schema(choices, discriminator=self.tag)
        return core_schema.no_info_before_validator_function(self.with_tag, union)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        union = handler(schema)
        for name, reference in union["discriminator"]["mapping"].items():
            section = handler.resolve_ref_schema({"$ref": reference})
            if name != self.default and self.tag not in section.setdefault("required", []):
                section["required"].insert(0, self.tag)
        return union if self.default else {"anyOf": [{"enum": list(self), "type": "string"}, union]}


@dataclass(frozen=True)
class NameIn:
    """Annotation of a key whose value is the name of a module of a folder; none is imported."""

    folder: str

    def __get_pydantic_core_schema__(self, _: Any, __: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.literal_schema(sorted(module_names(self.folder)))


def class_in(module: str, interface: type[Any], tag: str, name: str) -> type[Any]:
    """The one class of an interface that a module defines, with this name as the default of its tag.

    Raises:
        TypeError: There is no such class, or more than one class.
    """
    defined = [value for value in vars(import_module(module)).values() if getattr(value, "__module__", "") == module]
    found: list[type[Any]] = [value for value in defined if isinstance(value, type) and issubclass(value, interface)]
    if len(found) != 1 or found[0].model_fields[tag].default != name:
        raise TypeError(f"{module}: define one {interface.__name__} whose '{tag}' is '{name}' by default")
    return found[0]


def module_names(folder: str) -> dict[str, str]:
    """Name of every strategy of a package -> its module; imports none of them."""
    return {file.name.rstrip("_"): f"{folder}.{file.name}" for file in iter_modules(import_module(folder).__path__)}


def registry_of(field: FieldInfo) -> Registry | None:
    """The registry of a key that selects a strategy, or None."""
    return next((each for each in field.metadata if isinstance(each, Registry)), None)


def _has(module: str, files: Sequence[str]) -> bool:
    """Whether a module is a folder with all these files."""
    spec = find_spec(module)
    is_folder = spec is not None and spec.submodule_search_locations is not None
    return is_folder and all(find_spec(f"{module}.{file}") for file in files)
