"""The dense model of the config."""

from collections.abc import Sequence

from torch import nn

from lpvit.errors import LpvitError
from lpvit.models.analysis.trace import IMAGES, random_images
from lpvit.models.architecture import Architecture
from lpvit.models.edits import edits_of
from lpvit.models.settings import Model
from lpvit.models.sources.checkpoints import load_weights, read_checkpoint
from lpvit.models.sources.source import IMAGENET_1K, Source, source_class
from lpvit.models.unpacking.edit import unpack


def dense_model(settings: Model, classes: Sequence[str]) -> tuple[Architecture, nn.Module]:
    """A model with its source's weights, those of a checkpoint, or random ones for training.

    Args:
        settings: Of the config.
        classes: Names of the classes in the order of the labels; empty of images without classes.

    Raises:
        LpvitError: The source does not have the model, or the weights are missing or do not fit.
    """
    source = configured_source(settings, len(classes) or None)
    own = source.known_labels if settings.weights == "pretrained" and not classes else ()
    names = tuple(own) if len(own) == source.num_classes else tuple(classes)
    architecture = Architecture(source=source, classes=names)
    model = architecture.build(pretrained=settings.weights == "pretrained", seed=settings.seed)
    if settings.checkpoint is not None:
        load_weights(model, read_checkpoint(settings.checkpoint, model), settings.checkpoint)
    unpack(model, random_images(model, IMAGES))
    return architecture.with_edits(edits_of(model)), model


def configured_source(settings: Model, num_classes: int | None) -> Source:
    """What builds the model of a section of the config.

    Args:
        settings: Of the config.
        num_classes: Of the dataset; None without classes: the head stays as the source's weights have it.

    Raises:
        LpvitError: Its source has no such model, or does not say what its head is.
    """
    kind = source_class(settings.source)
    if num_classes is None:
        num_classes = settings.num_classes
    if num_classes is None:
        num_classes = kind.configured(settings, IMAGENET_1K).known_classes
        if num_classes is None and settings.torchvision is not None:
            raise LpvitError(f"models: no weights of torchvision's '{settings.name}' say its head; set 'num_classes'")
    source = kind.configured(settings, num_classes or 0)
    return source.model_copy(update={"output": settings.output})
