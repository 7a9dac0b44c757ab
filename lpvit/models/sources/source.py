"""Sources: who builds the bare model, with which arguments."""

from abc import abstractmethod
from typing import Annotated

from pydantic import BeforeValidator, SerializeAsAny
from torch import nn

from lpvit.models.edits import tagged
from lpvit.settings import Section

SOURCES = {"timm": "lpvit.models.sources.timm"}  # name -> module that defines the class


class Source(Section):
    """What it takes to build a model before any edit, as plain values.

    Attributes:
        source: Name among `SOURCES`.
        num_classes: Outputs of the model.
    """

    source: str
    num_classes: int

    @abstractmethod
    def build(self, pretrained: bool = False, drop_path: float = 0.0, seed: int = 0) -> nn.Module:
        """The bare model, in evaluation mode.

        Args:
            pretrained: Load the weights that the source has for it.
            drop_path: Stochastic depth rate while training.
            seed: Of the initial weights.

        Raises:
            LpvitError: The source cannot build it, or a setting is none that a file may give.
        """

    @abstractmethod
    def __str__(self) -> str:
        """Source, model and arguments, for messages."""


AnySource = Annotated[
    SerializeAsAny[Source], BeforeValidator(lambda value: tagged(Source, "source", SOURCES, value))
]  # in a section or a file: read by its name
