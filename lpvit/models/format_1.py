"""Architectures in files of format 1: a timm model with three edits in a fixed order."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass


@dataclass(frozen=True)
class Architecture1:
    """Fields of format 1; parameter shapes, schemes and int8 layers become edits in this order."""

    timm: str
    num_classes: int
    options: dict[str, Any]
    data_config: dict[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    schemes: Sequence[dict[str, Any]]
    int8: Sequence[str]


def architecture_of_format_1(value: Any) -> dict[str, Any]:
    """The fields of an `lpvit.models.architecture.Architecture`, from those of format 1.

    Raises:
        ValueError: They are not those of format 1.
    """
    found = TypeAdapter(Architecture1).validate_python(value)
    arguments = {"num_classes": found.num_classes, "options": found.options, "data_config": found.data_config}
    return {
        "source": {"source": "timm", "name": found.timm, **arguments},
        "edits": [
            *([{"kind": "width", "shapes": found.shapes}] if found.shapes else []),
            *({"kind": "schemes", "scheme": scheme} for scheme in found.schemes),
            *([{"kind": "quantisation", "layers": found.int8}] if found.int8 else []),
        ],
    }
