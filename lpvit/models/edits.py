"""Edits: changes of a model by compression, with plain settings, replayed in order when a file is loaded.

A kind of edit is defined in ``edit.py`` of its package and has the name of that package: `lpvit.structures.width.edit`
defines the kind ``width``. The file contains one final subclass of `Edit`. It is imported when a model or file needs
it.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, SerializeAsAny, ValidationError
from torch import nn

from lpvit.errors import nearest, one_line
from lpvit.settings import Section
from lpvit.strategies import class_in

PACKAGE = Path(__file__).parent.parent


class Edit(Section):
    """One change of a model. Settings are plain values, because they are saved in files.

    Attributes:
        kind: Name of the package that defines the edit.
        removes: Whether the model costs less after it: what it removed, the model before it still has.
    """

    removes: ClassVar[bool] = False

    kind: str

    @abstractmethod
    def apply(self, model: nn.Module) -> None:
        """Changes the structure of a model in place; weights come from a state dict.

        Args:
            model: With the edits before this one applied; may be on the meta device.

        Raises:
            LpvitError: The edit does not fit the model.
        """


def edits_of(model: nn.Module) -> tuple[Edit, ...]:
    """The edits of a model in order; copies of a model keep them."""
    return getattr(model, "lpvit_edits", ())


def set_edits(model: nn.Module, edits: Iterable[Edit]) -> None:
    """Sets the recorded edits of a model; does not change the model otherwise."""
    model.lpvit_edits = tuple(edits)  # type: ignore[assignment]


def record_edit(model: nn.Module, edit: Edit) -> None:
    """Records an edit that was applied to a model."""
    set_edits(model, (*edits_of(model), edit))


def apply_edit(model: nn.Module, edit: Edit) -> nn.Module:
    """Applies an edit to a model in place, and records it.

    Raises:
        LpvitError: The edit does not fit the model.
    """
    edit.apply(model)
    record_edit(model, edit)
    return model


@cache
def edit_modules() -> dict[str, str]:
    """Kind -> module that defines it; imports none of them."""
    files = sorted(PACKAGE.rglob("edit.py"))
    return {file.parent.name: ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in files}


def edit_class(kind: str) -> type[Edit]:
    """The class of a kind of edit."""
    return class_in(edit_modules()[kind], Edit, "kind", kind)


def tagged(interface: type[Any], tag: str, modules: Mapping[str, str], value: Any) -> Any:
    """Reads plain values as the class named by their tag.

    Args:
        interface: Base of the class.
        tag: Key with its name.
        modules: Name -> module that defines the class.
        value: From a file; or an instance of the interface, which is returned.

    Raises:
        ValueError: The name is unknown, or the class does not accept the other values; in one line.
    """
    if isinstance(value, interface):
        return value
    name = value.get(tag) if isinstance(value, Mapping) else value
    if not isinstance(name, str) or name not in modules:
        raise ValueError(f"found {tag} {ascii(name)[:60]}{nearest(str(name), modules)}")
    try:
        return class_in(modules[name], interface, tag, name).model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, (name, *first["loc"])))
        raise ValueError(one_line(f"{place}: {first['msg']}")) from None


AnyEdit = Annotated[
    SerializeAsAny[Edit], BeforeValidator(lambda value: tagged(Edit, "kind", edit_modules(), value))
]  # in a section or a file: read by its kind
