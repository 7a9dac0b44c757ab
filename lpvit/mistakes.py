"""Converts pydantic's errors of a section to one line each."""

from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lpvit.errors import nearest
from lpvit.strategies import Registry, registry_of

Location = tuple[int | str, ...]


def mistakes(error: ValidationError, raw: Any, section: type[BaseModel]) -> Iterator[str]:
    """One line per error: location, what was found, what was expected.

    Args:
        error: Of a section.
        raw: Input of the section.
        section: Its class.
    """
    places: dict[str, list[str]] = {}  # a value that fits no type of a union gives one error for each of them
    for problem in error.errors():
        places.setdefault(_place(problem["loc"], raw, problem["type"] == "missing"), []).append(
            _explain(problem, section)
        )
    return (f"{place}{line}" for place, texts in places.items() for line in " or ".join(texts).splitlines())


def _place(location: Location, raw: Any, missing: bool = False) -> str:
    """Dotted path to a problem and a colon, without pydantic's names for branches of a union and for keys."""
    parts, node = [], raw
    for depth, part in enumerate(location, start=1):
        if part == "[key]" or not isinstance(node, Mapping | list | tuple):
            break
        keys = node if isinstance(node, Mapping) else dict(enumerate(node))
        if part in keys or (missing and depth == len(location)):  # otherwise the branch of a tagged union
            parts.append(str(part))
            node = keys.get(part)
    return ".".join(parts) + ": " * bool(parts)


def _explain(problem: ErrorDetails, section: type[BaseModel]) -> str:
    location, kind = problem["loc"], problem["type"]
    if kind == "extra_forbidden":
        return _unknown_key(str(location[-1]), _section_at(section, location[:-1]))
    if kind == "missing":
        return "missing"
    if kind == "value_error":
        return str(problem["ctx"]["error"])
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return f"expected keys with values, found {problem['input']!r}"
    return _plainly(problem)


_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "bool": "true or false",
    "tuple": "a list",
    "list": "a list",
    "path": "a path",
}


def _plainly(problem: ErrorDetails) -> str:
    """What was expected and found, in words without pydantic's terms."""
    kind, found, context = problem["type"], problem["input"], problem.get("ctx", {})
    expected = f"{problem['msg'][0].lower()}{problem['msg'][1:]}"
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        expected = f"expected {words} {context[key]:g}"
        if context[key] == 1 and isinstance(found, int | float) and 1 < found <= 100:
            return f"{expected}, found {found!r}; it is a share: {found:g} % is {found / 100:g}"
    elif kind == "literal_error":
        expected = f"expected {context['expected']}"
    elif kind == "finite_number":
        expected = "expected a finite number"
    elif kind == "string_pattern_mismatch":
        expected = "expected letters, digits and _ . + -, a letter or digit first"
    elif kind in ("too_short", "too_long"):
        least = kind == "too_short"
        count = context["min_length" if least else "max_length"]
        expected = f"expected {'at least' if least else 'at most'} {count} of them"
    elif (name := kind.partition("_")[0]) in _TYPES:
        expected = f"expected {_TYPES[name]}"
    share = isinstance(found, str) and found.rstrip().endswith("%") and found.rstrip(" %").replace(".", "", 1)
    hint = f"; write {float(found.rstrip(' %')) / 100:g}" if share and share.isdigit() else ""
    return f"{expected}, found {found!r}{hint}"


def _unknown_key(key: str, section: type[BaseModel]) -> str:
    """The place of a key: a strategy that the section may select, a sibling of the section, or none."""
    for field, info in section.model_fields.items():
        for name, strategy in (registry_of(info) or {}).items():
            if key in strategy.model_fields:
                return f"belongs to {field} '{name}': write {field}: {{name: {name}, {key}: ...}}"
    registry: Registry | None = getattr(section, "registry", None)
    for name, strategy in (registry or {}).items():
        if registry is not None and key in strategy.model_fields:
            kind = registry.interface.__name__.lower() if registry.tag == "name" else registry.tag
            return f"belongs to {kind} '{name}', not to '{section.model_fields[registry.tag].default}'"
    return f"unknown key{nearest(key, section.model_fields)}"


def _section_at(section: type[BaseModel], location: Location) -> type[BaseModel]:
    """The section that contains a location within another section."""
    kind: Any = section
    for part in location:
        kind = _inside(kind, part)
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        raise TypeError(f"{section.__name__}: no section at {location}")
    return kind


def _inside(kind: Any, part: int | str) -> Any:
    """The type of a key, or of one branch of a union."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = kind.model_fields[str(part)]
        return _plain(registry_of(field) or field.annotation)
    if isinstance(kind, Registry):
        return kind[str(part)]
    return _plain(get_args(kind)[-1])  # of a dictionary


def _plain(kind: Any) -> Any:
    """A type without its annotations, or the registry among them; of an optional section, the section."""
    if get_origin(kind) is Annotated:
        return next((each for each in get_args(kind) if isinstance(each, Registry)), get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return next(each for each in get_args(kind) if each is not type(None))
    return kind
