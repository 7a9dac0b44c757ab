"""The dense model of the config."""

from torch import nn

from lpvit.models.architecture import Architecture
from lpvit.models.settings import Model
from lpvit.models.sources.checkpoints import load_weights, read_checkpoint
from lpvit.models.sources.timm import Timm


def dense_model(settings: Model, num_classes: int) -> tuple[Architecture, nn.Module]:
    """A timm model with timm's weights, those of a checkpoint, or random ones for training.

    Args:
        settings: Of the config.
        num_classes: Outputs.

    Raises:
        LpvitError: timm does not have the model, or the weights are missing or do not fit.
    """
    timm = Timm(name=settings.timm, num_classes=num_classes, options=settings.options, data_config=settings.data_config)
    architecture = Architecture(source=timm)
    model = architecture.build(pretrained=settings.weights == "pretrained", seed=settings.seed)
    if settings.checkpoint is not None:
        load_weights(model, read_checkpoint(settings.checkpoint), settings.checkpoint)
    return architecture, model
