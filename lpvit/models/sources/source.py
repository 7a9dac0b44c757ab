"""Sources: build the bare model from its arguments."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BeforeValidator, Field, SerializeAsAny
from timm.data import ImageNetInfo
from torch import nn

from lpvit.models.edits import tagged
from lpvit.models.sources.arguments import DATA_CONFIG, require_data_config
from lpvit.settings import Section
from lpvit.strategies import class_in

if TYPE_CHECKING:
    from lpvit.models.settings import Model

IMAGENET_1K = 1000

_PACKAGE = "lpvit.models.sources"
SOURCES = {  # name -> module that defines the class
    name: f"{_PACKAGE}.{name}" for name in ("timm", "transformers", "torchvision", "open_clip", "module", "given")
}


def source_class(name: str) -> type["Source"]:
    """The class of a source by its name."""
    return class_in(SOURCES[name], Source, "source", name)


class Source(Section):
    """How to build a model before any edit, as plain values.

    Attributes:
        source: Name among `SOURCES`.
        num_classes: Outputs of the model; 0 for features.
        data_config: Preprocessing in timm's words (``mean``, ``std``, ``interpolation``, ``input_size``, ...), as far
            as it differs from what `build` finds by itself.
        output: Keys or places of the tensors that count, of a model that returns several; empty for the default
            (`lpvit.models.outputs.Reading`).
    """

    source: str
    num_classes: int = Field(0, ge=0, le=2**16)
    data_config: dict[str, Any] = Field(default_factory=dict)
    output: tuple[str | int, ...] = ()

    @classmethod
    @abstractmethod
    def configured(cls, settings: "Model", num_classes: int) -> Self:
        """The source that a section of the config describes.

        Raises:
            LpvitError: There is no such model.
        """

    @staticmethod
    def classes_in(model: nn.Module) -> int | None:
        """Outputs of the present head, which may be another than was built; None if the model does not say it."""
        return None

    @property
    def known_classes(self) -> int | None:
        """Classes that the source's weights know; None if there are none or it is not known."""
        return None

    @property
    def known_labels(self) -> Sequence[str]:
        """Names of these classes by label, as the source has them; empty if it does not say them."""
        return ()

    @abstractmethod
    def build(self, pretrained: bool = False, seed: int = 0) -> nn.Module:
        """The bare model, in evaluation mode, with its preprocessing in ``pretrained_cfg``.

        Args:
            pretrained: Load the source's weights.
            seed: Of the initial weights.

        Raises:
            LpvitError: The source cannot build it, or a setting is not allowed in a file.
        """

    def preprocessing_of(self, model: nn.Module) -> Mapping[str, Any]:
        """The preprocessing of a model of this source, as its library has it by default, in timm's words."""
        return {}

    @abstractmethod
    def __str__(self) -> str:
        """Source, model and arguments, for messages."""

    def described(self, model: nn.Module, found: Mapping[str, Any]) -> nn.Module:
        """The model in evaluation mode, with its preprocessing and number of classes in the places where timm has them.

        Args:
            model: Changed in place.
            found: Preprocessing as the library says it; ``data_config`` comes before it.
        """
        require_data_config(self.data_config, (*DATA_CONFIG, "input_size"))
        model.pretrained_cfg = {**found, **self.data_config}  # type: ignore[assignment]
        if not hasattr(model, "num_classes"):
            model.num_classes = self.num_classes  # type: ignore[assignment]
        return model.eval()


def data_config_of(model: nn.Module) -> dict[str, Any]:
    """The preprocessing that a model carries, in timm's words."""
    found = getattr(model, "pretrained_cfg", None) or {}
    return {key: found[key] for key in (*DATA_CONFIG, "input_size") if found.get(key) is not None}


def imagenet_labels(classes: int | None) -> Sequence[str]:
    """The synsets of ImageNet-1k by label, for weights that know as many classes."""
    return ImageNetInfo().label_names() if classes == IMAGENET_1K else ()


def outputs_of_head(head: object) -> int | None:
    """Outputs of a module that may be a classifier; 0 of one that passes on features, None of others."""
    if isinstance(head, nn.Identity):
        return 0
    found = getattr(head, "out_features", None)
    return found if isinstance(found, int) else None


AnySource = Annotated[
    SerializeAsAny[Source], BeforeValidator(lambda value: tagged(Source, "source", SOURCES, value))
]  # in a section or a file: read by its name
