"""The classes that a model's outputs stand for."""

import re
from collections.abc import Sequence

from timm.data import ImageNetInfo

from lpvit.data.classes import require_same_order
from lpvit.models.settings import Model
from lpvit.models.sources.dense import configured_source


def require_labels_of_weights(settings: Model, classes: Sequence[str]) -> None:
    """Checks the labels of a dataset against those that untrained weights of a source were made for.

    These are ImageNet's for timm and torchvision, and those of ``config.json`` for a folder of transformers, also as a
    checkpoint. Names are compared without case, spaces and underscores, and synsets by their descriptions.

    Args:
        settings: Of the config.
        classes: Of the dataset, by label. Numbers cannot be checked, nor synsets against other names than ImageNet's.

    Raises:
        LpvitError: A label means another class.
    """
    names_itself = settings.weights == "pretrained" or (settings.weights == "checkpoint" and settings.transformers)
    if settings.recipe is not None or not names_itself or all(map(str.isdecimal, classes)):
        return
    known = configured_source(settings, len(classes)).known_labels
    if len(known) != len(classes):
        return  # the head is random, which is refused where the model is checked
    if _are_synsets(classes) and not _are_synsets(known):
        described = ImageNetInfo()
        descriptions = set(map(_plain, described.label_descriptions()))
        if not descriptions.issuperset(map(_plain, known)) or not set(described.label_names()).issuperset(classes):
            return
        classes = [described.label_name_to_description(name) for name in classes]
    if _are_synsets(classes) == _are_synsets(known):
        spelled = {_plain(name): name for name in known}
        found = [spelled.get(_plain(name), name) for name in classes]
        require_same_order(known, found, f"models: {settings.source}'s weights of '{settings.name}'")


def _are_synsets(names: Sequence[str]) -> bool:
    return all(re.fullmatch(r"n\d{8}", name) for name in names)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name).strip().casefold()
