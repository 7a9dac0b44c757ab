"""Registry of layouts, one file each: how a dataset is stored, how its images are listed, and how it is recognised.

A file defines one `Layout`; its fields are the keys of ``source``. The config, `lpvit init`, the index of images and
the fingerprint that decides reruns ask it, and nothing else knows how datasets are stored.
"""

import os
import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from lpvit.settings import Section
from lpvit.strategies import Registry

TRAINING = ("train", "training")
VALIDATION = ("val", "valid", "validation", "validate", "dev", "test", "testing")


class Split(NamedTuple):
    """The images of a split, in order.

    Attributes:
        paths: Of each image below the root; see `lpvit.data.encoded`.
        classes: Class of each image: its name, or its number as text; empty of images without classes.
        names: Of all classes, in the order in which the dataset numbers them; None if it does not.
    """

    paths: list[str]
    classes: list[str]
    names: Sequence[str] | None = None


class Found(NamedTuple):
    """A dataset that a layout recognises in a folder.

    Attributes:
        layout: With its keys.
        root: Folder of the dataset.
        train: Training split, as in the config.
        validation: Validation split; None without one.
    """

    layout: "Layout"
    root: Path
    train: str
    validation: str | None


class Layout(Section):
    """How a dataset is stored.

    Attributes:
        labelled: Whether images have classes.
        numbered: Whether classes whose names are the numbers 0, 1, 2, ... have these as labels.
        rank: Of several layouts that recognise a folder, with equal splits, that with the highest is meant.
    """

    registry: ClassVar = Registry("lpvit.data.layouts")
    labelled: ClassVar[bool] = True
    numbered: ClassVar[bool] = True
    rank: ClassVar[int] = 0

    name: str

    @abstractmethod
    def read(self, root: Path, split: str) -> Split:
        """Lists the images of a split without decoding them.

        Args:
            root: Folder of the dataset.
            split: As in the config: ``train`` or ``validation`` of the dataset.

        Raises:
            LpvitError: The split is missing or empty, or its images have no classes; the message says what is missing.
        """

    @abstractmethod
    def watched(self, root: Path, split: str) -> Iterable[str]:
        """Files and folders below the root whose content the split depends on: every image lies in one of them.

        Asked at every start, so it opens no images and raises nothing: what is missing is no part of it.
        """

    @classmethod
    def recognise(cls, folder: Path) -> Found | None:
        """The dataset in a folder, if it is stored in this way.

        Raises:
            LpvitError: It is, but something is missing that only the user can give.
        """
        return None


def recognise(folder: Path) -> Found | None:
    """The dataset in a folder by the layout that fits best, or in the only folder in it, as archives have it.

    Raises:
        LpvitError: Something is missing that only the user can give.
    """
    found: list[Found] = [each for layout in Layout.registry.values() if (each := layout.recognise(folder)) is not None]
    if found:
        return max(found, key=lambda each: (each.validation is not None, each.layout.rank))
    below = subfolders(folder)
    return recognise(folder / below[0]) if len(below) == 1 else None


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, except hidden ones, in lexical order."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")


def split_names(names: Iterable[str]) -> tuple[str, str | None] | None:
    """What a training and a validation split are called, of names such as ``train`` or ``cats-train-00001.tar``.

    Args:
        names: Of folders or files.

    Returns:
        The beginnings of the names up to the word for the split, or None if there is no training split.
    """
    starts = list(_starts(names))
    train = next((start for word in TRAINING for start, found in starts if found == word), None)
    if train is None:
        return None
    return train, next((start for word in VALIDATION for start, found in starts if found == word), None)


def _starts(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Beginning of a name up to the word for a split, and that word."""
    for name in sorted(names):
        if place := re.match(rf"(?:.*[-_.])??({'|'.join((*TRAINING, *VALIDATION))})(?=[-_.]|$)", name, re.IGNORECASE):
            yield place[0], place[1].lower()
