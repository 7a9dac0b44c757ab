"""The classes that a model's outputs stand for."""

import re
from collections.abc import Sequence

from timm.data import ImageNetInfo

from lpvit.data.classes import require_same_order
from lpvit.models.settings import Model

IMAGENET_1K = 1000


def require_labels_of_weights(settings: Model, classes: Sequence[str]) -> None:
    """Checks the labels of a dataset against those that untrained timm weights were made for: ImageNet's synsets.

    Args:
        settings: Of the config.
        classes: Of the dataset, by label. Names that are no synsets cannot be checked.

    Raises:
        LpvitError: A label means another class.
    """
    fixed = (
        settings.timm is not None
        and settings.weights == "pretrained"
        and settings.recipe is None
        and len(classes) == IMAGENET_1K
    )
    if fixed and all(re.fullmatch(r"n\d{8}", name) for name in classes):
        require_same_order(ImageNetInfo().label_names(), classes, f"models: timm's weights of '{settings.timm}'")
