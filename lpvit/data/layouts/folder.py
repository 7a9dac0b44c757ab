"""Layout `folder`."""

import logging
from pathlib import Path
from typing import ClassVar, Literal

from lpvit.data.layouts import Found, Layout, Split, split_names, subfolders
from lpvit.data.listing import IMAGE_SUFFIXES, files_below, is_image
from lpvit.errors import LpvitError, some_of

_logger = logging.getLogger(__name__)


class Folder(Layout):
    """One folder of images for each class, `<split>/<class>/*.jpg`; folders within it belong to the class."""

    numbered: ClassVar[bool] = False
    rank: ClassVar[int] = 1  # archives often lie beside what was unpacked from them

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
    return split.is_dir() and any(any(map(is_image, files_below(split, [name])[name])) for name in subfolders(split))


def read_classes(root: Path, split: str) -> Split:
    """The images of a split with one folder for each class, in lexical order of class and file.

    Raises:
        LpvitError: There are no class folders, or one of them holds no images.
    """
    place = root / split
    if not place.is_dir():
        raise LpvitError(f"{place}: folder not found; correct 'root', 'train' or 'validation' of the dataset")
    names = subfolders(place)
    if not names:
        raise LpvitError(f"{place}: holds no class folders; expected one folder of images per class")
    found = Split([], [])
    ignored: list[str] = []
    for name, files in files_below(place, names).items():
        images = [file for file in files if is_image(file)]
        if not images:
            instead = f", but {some_of(files)}" if files else ""
            kinds = ", ".join(IMAGE_SUFFIXES)
            raise LpvitError(f"{place / name}: holds no images ({kinds}){instead}; fill or remove this class folder")
        found.paths.extend(f"{name}/{file}" if split == "." else f"{split}/{name}/{file}" for file in images)
        found.classes.extend([name] * len(images))
        ignored += [f"{name}/{file}" for file in files if not is_image(file)]
    if ignored:
        _logger.warning("%s: ignored, as not named like images: %s", place, some_of(ignored))
    return found
