"""Layout `kaggle_imagenet`."""

import csv
import os
from pathlib import Path
from typing import ClassVar, Literal

from lpvit.data.layouts import Found, Layout, Split
from lpvit.data.layouts.folder import read_classes
from lpvit.errors import LpvitError

IMAGES = "ILSVRC/Data/CLS-LOC"  # below the root


class KaggleImageNet(Layout):
    """ImageNet-1k as Kaggle has it: `ILSVRC/Data/CLS-LOC/train/<class>/`, a flat `val/`, and `LOC_val_solution.csv`."""

    numbered: ClassVar[bool] = False
    rank: ClassVar[int] = 3

    name: Literal["kaggle_imagenet"] = "kaggle_imagenet"

    def read(self, root: Path, split: str) -> Split:
        if (root / _solution(split)).is_file() and not _has_folders(root / IMAGES / split):
            return _read_flat(root, split)
        if (root / IMAGES / split).is_dir() and not _has_folders(root / IMAGES / split):
            raise LpvitError(
                f"{root / _solution(split)}: not found; it has the classes of {IMAGES}/{split} and lies beside ILSVRC/ "
                "in Kaggle's archive"
            )
        return read_classes(root, f"{IMAGES}/{split}")

    def watched(self, root: Path, split: str) -> list[str]:
        return [f"{IMAGES}/{split}", _solution(split)]

    @classmethod
    def recognise(cls, folder: Path) -> Found | None:
        inside = [folder.resolve(), *list(folder.resolve().parents)[: IMAGES.count("/") + 1]]
        root = next((place for place in inside if _has_folders(place / IMAGES / "train")), None)
        if root is None:
            return None
        return Found(cls(), folder if root == inside[0] else root, "train", "val")


def _solution(split: str) -> str:
    return f"LOC_{split}_solution.csv"


def _has_folders(folder: Path) -> bool:
    return folder.is_dir() and any(entry.is_dir() for entry in os.scandir(folder))


def _read_flat(root: Path, split: str) -> Split:
    """Images in one folder; their classes begin the second column: ``ILSVRC2012_val_1,n01751748 85 1 499 272``."""
    file = root / _solution(split)
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows = [(row[0], row[1].split()[0]) for row in list(csv.reader(lines))[1:]]
    except (OSError, UnicodeDecodeError, csv.Error, IndexError) as error:
        raise LpvitError(f"{file}: cannot be read as Kaggle's solution file ({error}); copy it again") from None
    rows.sort()
    paths = [f"{IMAGES}/{split}/{image}.JPEG" for image, _ in rows]
    missing = [path for path in paths if not (root / path).is_file()]
    if missing or not rows:
        example = f", such as {root / missing[0]}" if missing else ""
        raise LpvitError(
            f"{file}: {len(missing)} of its {len(rows)} images are missing{example}; unpack the archive again"
        )
    return Split(paths, [label for _, label in rows])
