"""The dense model of the config."""

from collections.abc import Sequence

from torch import nn

from lpvit.models.architecture import Architecture
from lpvit.models.settings import Model
from lpvit.models.sources.checkpoints import load_weights, read_checkpoint
from lpvit.models.sources.timm import Timm


def dense_model(settings: Model, classes: Sequence[str]) -> tuple[Architecture, nn.Module]:
    """A timm model with timm's weights, those of a checkpoint, or random ones for training.

    Args:
        settings: Of the config.
        classes: Names of the classes in the order of the labels.

    Raises:
        LpvitError: timm does not have the model, or the weights are missing or do not fit.
    """
    timm = Timm(
        name=settings.timm, num_classes=len(classes), options=settings.options, data_config=settings.data_config
    )
    architecture = Architecture(source=timm, classes=tuple(classes))
    model = architecture.build(pretrained=settings.weights == "pretrained", seed=settings.seed)
    if settings.checkpoint is not None:
        load_weights(model, read_checkpoint(settings.checkpoint), settings.checkpoint)
    return architecture, model
