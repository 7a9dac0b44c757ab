"""Layout `folder`."""

import logging
from pathlib import Path
from typing import ClassVar, Literal

from lpvit.data.layouts import Found, Layout, Split, split_names, subfolders
from lpvit.data.listing import IMAGE_SUFFIXES, images_below
from lpvit.errors import LpvitError, some_of

_logger = logging.getLogger(__name__)


class Folder(Layout):
    """One folder of images for each class, `<split>/<class>/*.jpg`; folders within it belong to the class."""

    numbered: ClassVar[bool] = False

    name: Literal["folder"] = "folder"

    def read(self, root: Path, split: str) -> Split:
        return read_classes(root, split)

    def watched(self, root: Path, split: str) -> list[str]:
        return [split]

    @classmethod
    def recognise(cls, folder: Path) -> Found | None:
        inside = subfolders(folder)
        splits = split_names(inside)
        if splits is not None and splits[0] in inside:
            validation = splits[1] if splits[1] in inside else None
            return Found(cls(), folder, splits[0], validation) if holds_classes(folder / splits[0]) else None
        flat = len(inside) > 1 or not any(
            subfolders(folder / name) for name in inside
        )  # or a folder around the dataset
        return Found(cls(), folder, ".", None) if flat and holds_classes(folder) else None


def holds_classes(split: Path) -> bool:
    """Whether a folder has folders of images."""
    return split.is_dir() and any(images_below(split / name)[0] for name in subfolders(split))


def read_classes(root: Path, split: str) -> Split:
    """The images of a split with one folder for each class, in lexical order of class and file.

    Raises:
        LpvitError: There are no class folders, or one of them holds no images.
    """
    if not (root / split).is_dir():
        raise LpvitError(f"{root / split}: folder not found; correct 'root', 'train' or 'validation' of the dataset")
    names = subfolders(root / split)
    if not names:
        raise LpvitError(f"{root / split}: holds no class folders; expected one folder of images per class")
    prefix = "" if split == "." else f"{split}/"
    paths: list[str] = []
    classes: list[str] = []
    ignored: list[str] = []
    for name in names:
        images, others = images_below(root / split / name)
        if not images:
            instead = f", but {some_of(others)}" if others else ""
            kinds = ", ".join(IMAGE_SUFFIXES)
            place = root / split / name
            raise LpvitError(f"{place}: holds no images ({kinds}){instead}; fill or remove this class folder")
        paths += [f"{prefix}{name}/{file}" for file in images]
        classes += [name] * len(images)
        ignored += [f"{name}/{file}" for file in others]
    if ignored:
        _logger.warning("%s: ignored, as not named like images: %s", root / split, some_of(ignored))
    return Split(paths, classes)
