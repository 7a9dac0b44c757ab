"""Layout `unlabelled`."""

from pathlib import Path
from typing import ClassVar, Literal

from lpvit.data.layouts import Found, Layout, Split, split_names, subfolders
from lpvit.data.listing import IMAGE_SUFFIXES, files_below, is_image
from lpvit.errors import LpvitError


class Unlabelled(Layout):
    """Images without classes: all below `<split>`, in folders or not."""

    labelled: ClassVar[bool] = False
    numbered: ClassVar[bool] = False
    rank: ClassVar[int] = -1

    name: Literal["unlabelled"] = "unlabelled"

    def read(self, root: Path, split: str) -> Split:
        place = root / split
        if not place.is_dir():
            raise LpvitError(f"{place}: folder not found; correct 'root', 'train' or 'validation' of the dataset")
        images = list(filter(is_image, files_below(root, [split])[split]))
        if not images:
            raise LpvitError(f"{place}: holds no images ({', '.join(IMAGE_SUFFIXES)}); correct the folder")
        return Split([image if split == "." else f"{split}/{image}" for image in images], [""] * len(images))

    def watched(self, root: Path, split: str) -> list[str]:
        return [split]

    @classmethod
    def recognise(cls, folder: Path) -> Found | None:
        """Images that lie in the folder itself, or in folders for its splits."""
        splits = split_names(subfolders(folder))
        if splits is not None and _holds_images(folder / splits[0]):
            train, validation = splits
            found = validation is not None and _holds_images(folder / validation)
            return Found(cls(), folder, train, validation if found else None)
        return Found(cls(), folder, ".", None) if _holds_images(folder) else None


def _holds_images(folder: Path) -> bool:
    return folder.is_dir() and any(is_image(entry.name) and entry.is_file() for entry in folder.iterdir())
