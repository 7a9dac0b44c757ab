"""The list of a dataset's images: every file once, with its class and whether it can be decoded."""

import hashlib
import io
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from lpvit.data.encoded import IMAGE_SUFFIXES, read_encoded
from lpvit.data.shards import SOURCES, list_shards
from lpvit.errors import LpvitError, one_line
from lpvit.progress import bar

_logger = logging.getLogger(__name__)


def index_images(
    source: str,
    root: str | Path | None,
    train: str = "train",
    validation: str = "val",
    validation_share: float = 0.0,
    threads: int = 1,
) -> pd.DataFrame:
    """Lists the images of both splits and decodes every file once.

    Args:
        source: ``folder``, ``tar``, ``parquet`` or ``digits``, as in `lpvit.data.settings.Dataset`.
        root: Folder that holds the splits; not used by ``digits``.
        train: Training split, a folder below ``root`` with one folder per class, or shards; see `list_shards`.
        validation: Validation split, likewise.
        validation_share: Above 0, the share of every class of ``train`` used for validation, instead of ``validation``.
        threads: Files decoded at a time.

    Returns:
        Schema ``IMAGES``: the training split first, each split by class and file name in lexical order, or in
        the order of its shards.

    Raises:
        LpvitError: A split, class folder or shard is missing or empty, or the splits do not have the same classes.
    """
    images = list_images(source, root, train, validation, validation_share)
    if source != "digits":
        images["problem"] = pd.Series(_find_problems(Path(root or ""), images["path"], threads), dtype=object)
    return images


def list_images(
    source: str,
    root: str | Path | None,
    train: str = "train",
    validation: str = "val",
    validation_share: float = 0.0,
) -> pd.DataFrame:
    """The same without decoding files: no image has a problem yet."""
    if source == "digits":
        return _index_digits()
    if root is None:
        raise LpvitError(f"root: missing; source '{source}' needs the folder that holds the splits")
    if source in SOURCES:
        return _in_shards(source, Path(root), train, validation, validation_share)
    folders = {"train": Path(root, train), "validation": Path(root, train if validation_share else validation)}
    _check_same_classes(folders, {split: list_classes(folder) for split, folder in folders.items()})
    if validation_share:
        files = _files_of(Path(root), train)
        parted = {name: part_for_validation(of_class, validation_share, name) for name, of_class in files.items()}
        splits = {split: {name: parts[split] for name, parts in parted.items()} for split in ("train", "validation")}
    else:
        splits = {"train": _files_of(Path(root), train), "validation": _files_of(Path(root), validation)}
    rows = [
        (split, file, label, name)
        for split, classes in splits.items()
        for label, (name, files) in enumerate(classes.items())
        for file in files
    ]
    return pd.DataFrame(rows, columns=["split", "path", "label", "class_name"]).assign(problem=None)


def _in_shards(source: str, root: Path, train: str, validation: str, validation_share: float) -> pd.DataFrame:
    images = list_shards(source, root, train)
    if validation_share:
        parts = [
            part_for_validation(of_class["path"].tolist(), validation_share, str(name))
            for name, of_class in images.groupby("class_name")
        ]
        validates = images["path"].isin({path for part in parts for path in part["validation"]})
        splits = {"train": images[~validates], "validation": images[validates]}
    else:
        splits = {"train": images, "validation": list_shards(source, root, validation)}
    classes = {split: sorted(of_split["class_name"].unique()) for split, of_split in splits.items()}
    _check_same_classes({split: root / split for split in splits}, classes)
    return pd.concat(
        [of_split.assign(split=split, problem=None) for split, of_split in splits.items()], ignore_index=True
    )[["split", "path", "label", "class_name", "problem"]]


def part_for_validation(files: Sequence[str], share: float, name: str) -> dict[str, list[str]]:
    """Splits the files of a class by a hash of their paths, so that a new file moves at most one other.

    Args:
        files: Paths.
        share: Used for validation; at least one file and not all.
        name: Of the class, for the message.

    Returns:
        ``train`` and ``validation``, each in the order given.

    Raises:
        LpvitError: There is only one file.
    """
    if len(files) < 2:
        raise LpvitError(f"class '{name}' has one image, which cannot both train and validate; add images or remove it")
    count = min(max(1, round(share * len(files))), len(files) - 1)
    chosen = set(sorted(files, key=lambda file: hashlib.sha256(file.encode(errors="surrogateescape")).digest())[:count])
    return {"train": [f for f in files if f not in chosen], "validation": [f for f in files if f in chosen]}


def usable_images(images: pd.DataFrame, split: str) -> pd.DataFrame:
    """The images of a split that can be decoded, in the order of the index.

    Args:
        images: Schema ``IMAGES``.
        split: ``train`` or ``validation``.

    Returns:
        Columns ``path`` and ``label``.
    """
    usable = images[(images["split"] == split) & images["problem"].isna()]
    return usable[["path", "label"]].reset_index(drop=True)


def class_names(images: pd.DataFrame) -> list[str]:
    """The names of the classes in the order of their labels.

    Args:
        images: Schema ``IMAGES``.
    """
    return list(images.drop_duplicates("label").sort_values("label")["class_name"])


def count_skipped(images: pd.DataFrame, split: str) -> int:
    """How many images of a split `usable_images` leaves out."""
    return int(((images["split"] == split) & images["problem"].notna()).sum())


def check_images(images: pd.DataFrame, on_bad_image: str, root: str | Path | None) -> None:
    """Raises for images that cannot be decoded, or logs how many are skipped.

    Args:
        images: Schema ``IMAGES``.
        on_bad_image: ``error`` or ``skip``.
        root: Folder that the paths are relative to, for the message.

    Raises:
        LpvitError: There are such images and ``on_bad_image`` is ``error``, or a class has no other image in a split.
    """
    bad = images[images["problem"].notna()]
    if bad.empty:
        return
    named = zip(bad["path"].head(3), bad["problem"].head(3), strict=True)
    first = "; ".join(f"{Path(root or '') / path}: {problem}" for path, problem in named)
    if on_bad_image == "error":
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise LpvitError(f"{first}{more}; replace or remove what cannot be decoded, or set 'on_bad_image: skip'")
    usable_per_class = images["problem"].isna().groupby([images["split"], images["class_name"]]).sum()
    if len(lost := usable_per_class[usable_per_class == 0]):
        split, class_name = lost.index[0]
        raise LpvitError(f"{split}: no image of class '{class_name}' can be decoded ({first}); replace its images")
    _logger.warning("%d of %d images cannot be decoded and are left out: %s", len(bad), len(images), first)


def find_problem(file: str | Path) -> str | None:
    """Why Pillow cannot decode a file; None if it can.

    The whole file is read, but a JPEG is decoded at an eighth of its size, which is enough to find what is broken.
    """
    try:
        content = read_encoded(file)
        if not content:
            return "empty file"
        with Image.open(io.BytesIO(content)) as image:
            image.draft(None, (1, 1))
            image.load()
    except UnidentifiedImageError:
        return "no image, or of a format that Pillow does not know"
    except Exception as error:  # Pillow raises different types for different damage
        text = re.sub(r"<_io\.BytesIO [^>]*>", "it", str(error).replace(str(file), "it"))
        return f"{type(error).__name__}: {one_line(text)}"
    return None


def _index_digits() -> pd.DataFrame:
    """scikit-learn's digits; every fifth image of a class is for validation."""
    from sklearn.datasets import load_digits

    labels = pd.Series(load_digits().target, dtype="int64")
    rank_in_class = labels.groupby(labels).cumcount()
    images = pd.DataFrame(
        {
            "split": np.where(rank_in_class % 5 == 4, "validation", "train"),
            "path": [f"digits/{number}" for number in range(len(labels))],
            "label": labels,
            "class_name": labels.astype(str),
            "problem": None,
        }
    )
    return images.sort_values(["split", "label"], kind="stable", ignore_index=True)


def _files_of(root: Path, split: str) -> dict[str, list[str]]:
    """Class -> paths of its files below ``root``, in lexical order; subfolders of a class folder belong to it."""
    prefix = "" if split == "." else f"{split}/"
    found: dict[str, list[str]] = {}
    ignored: list[str] = []
    for name in list_classes(root / split):
        images, others = images_below(root / split / name)
        if not images:
            raise LpvitError(f"{_without_images(root / split / name, others)}; fill or remove this class folder")
        found[name] = [f"{prefix}{name}/{file}" for file in images]
        ignored += [f"{name}/{file}" for file in others]
    if ignored:
        _logger.warning("%s: ignored, as not named like images: %s", root / split, _name_some(ignored))
    return found


def _without_images(folder: Path, others: list[str]) -> str:
    instead = f", but {_name_some(others)}" if others else ""
    return f"{folder}: holds no images ({', '.join(IMAGE_SUFFIXES)}){instead}"


def list_classes(split: Path) -> list[str]:
    """The names of the class folders of a split.

    Raises:
        LpvitError: There are none.
    """
    if not split.is_dir():
        raise LpvitError(f"{split}: folder not found; correct 'root', 'train' or 'validation' of the dataset")
    classes = sorted(entry.name for entry in os.scandir(split) if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise LpvitError(f"{split}: holds no class folders; expected one folder of images per class")
    return classes


def images_below(folder: str | Path) -> tuple[list[str], list[str]]:
    """Files below a folder that are named like images, and those that are not; hidden ones are left out."""
    images: list[str] = []
    others: list[str] = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = os.path.relpath(place, folder)
        for name in files:
            if not name.startswith("."):
                file = name if below == "." else f"{below}/{name}"
                (images if name.lower().endswith(IMAGE_SUFFIXES) else others).append(file)
    return sorted(images), sorted(others)


def _check_same_classes(folders: Mapping[str, Path], classes: Mapping[str, list[str]]) -> None:
    only_train = sorted(set(classes["train"]) - set(classes["validation"]))
    only_validation = sorted(set(classes["validation"]) - set(classes["train"]))
    problems = [
        f"{folders[split]} alone has {_name_some(names)}"
        for split, names in (("train", only_train), ("validation", only_validation))
        if names
    ]
    if problems:
        raise LpvitError(f"classes differ between the splits: {'; '.join(problems)}; both need the same classes")


def _name_some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more


def _find_problems(root: Path, paths: Iterable[str], threads: int) -> list[str | None]:
    files = [root / path for path in paths]
    with ThreadPool(threads) as pool:  # Pillow decodes without holding the interpreter lock
        results = pool.imap(find_problem, files, chunksize=16)
        return list(bar(results, "checking images", "image", total=len(files)))
