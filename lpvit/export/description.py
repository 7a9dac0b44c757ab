"""What files say of a model besides its weights: names of its classes and its preprocessing, the same in all formats.

JSON in the metadata of safetensors and ONNX files and in OpenVINO's ``rt_info``, under the name ``lpvit`` or
``description``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from pydantic import TypeAdapter, ValidationError
from torch import nn

from lpvit.data.preprocessing import Preprocessing
from lpvit.errors import LpvitError
from lpvit.models.architecture import classes_of
from lpvit.models.heads import is_classifier

KEY = "description"  # in the metadata of a file, and below "lpvit" in OpenVINO's rt_info


@dataclass(frozen=True)
class Description:
    """What a prediction needs besides the model.

    Attributes:
        classes: Names in the order of the logits; empty if they are not known.
        preprocessing: From an image to the model's input.
        features: Whether the outputs are features, not logits of classes.
    """

    classes: tuple[str, ...]
    preprocessing: Preprocessing
    features: bool = False

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """The description of a model.

        Raises:
            LpvitError: Its images are neither grey nor RGB.
        """
        return cls(classes_of(model), Preprocessing.from_model(model), is_classifier(model) is False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads what `metadata_of` wrote.

        Raises:
            LpvitError: It is damaged.
        """
        try:
            found: Self = TypeAdapter(cls).validate_json(text)
        except ValidationError:
            raise LpvitError(
                "its description of classes and preprocessing is damaged; export the model again"
            ) from None
        return found

    def name(self, label: int) -> str:
        """The class of a logit, or its number."""
        return self.classes[label] if label < len(self.classes) else str(label)


def metadata_of(model: nn.Module) -> Mapping[str, str]:
    """The entry of a file's metadata; none for images that this package cannot prepare."""
    try:
        description = Description.of(model)
    except LpvitError:
        return {}
    return {KEY: TypeAdapter(Description).dump_json(description).decode()}
