"""The dense model of the config."""

from collections.abc import Sequence

from torch import nn

from lpvit.models.analysis.trace import IMAGES, random_images
from lpvit.models.architecture import Architecture
from lpvit.models.edits import edits_of
from lpvit.models.settings import Model
from lpvit.models.sources.checkpoints import load_weights, read_checkpoint
from lpvit.models.sources.source import Source, source_class
from lpvit.models.unpacking.edit import unpack


def dense_model(settings: Model, classes: Sequence[str]) -> tuple[Architecture, nn.Module]:
    """A model with its source's weights, those of a checkpoint, or random ones for training.

    Args:
        settings: Of the config.
        classes: Names of the classes in the order of the labels.

    Raises:
        LpvitError: The source does not have the model, or the weights are missing or do not fit.
    """
    architecture = Architecture(source=configured_source(settings, len(classes)), classes=tuple(classes))
    model = architecture.build(pretrained=settings.weights == "pretrained", seed=settings.seed)
    if settings.checkpoint is not None:
        load_weights(model, read_checkpoint(settings.checkpoint, model), settings.checkpoint)
    unpack(model, random_images(model, IMAGES))
    return architecture.with_edits(edits_of(model)), model


def configured_source(settings: Model, num_classes: int) -> Source:
    """What builds the model of a section of the config.

    Raises:
        LpvitError: Its source has no such model.
    """
    source = source_class(settings.source).configured(settings, num_classes)
    return source.model_copy(update={"output": settings.output})
