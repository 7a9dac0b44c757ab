"""Sources: build the bare model from its arguments."""

from abc import abstractmethod
from typing import Annotated

from pydantic import BeforeValidator, SerializeAsAny
from torch import nn

from lpvit.models.edits import tagged
from lpvit.settings import Section

SOURCES = {"timm": "lpvit.models.sources.timm"}  # name -> module that defines the class


class Source(Section):
    """How to build a model before any edit, as plain values.

    Attributes:
        source: Name among `SOURCES`.
        num_classes: Outputs of the model.
    """

    source: str
    num_classes: int

    @abstractmethod
    def build(self, pretrained: bool = False, seed: int = 0) -> nn.Module:
        """The bare model, in evaluation mode.

        Args:
            pretrained: Load the source's weights.
            seed: Of the initial weights.

        Raises:
            LpvitError: The source cannot build it, or a setting is not allowed in a file.
        """

    @abstractmethod
    def __str__(self) -> str:
        """Source, model and arguments, for messages."""


AnySource = Annotated[
    SerializeAsAny[Source], BeforeValidator(lambda value: tagged(Source, "source", SOURCES, value))
]  # in a section or a file: read by its name
