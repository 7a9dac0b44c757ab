"""The list of a dataset's images: every file once, with its class and whether it can be decoded."""

import hashlib
import io
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import PIL
from PIL import Image, UnidentifiedImageError

from lpvit.data.classes import ordered_classes, plain_name
from lpvit.data.decoding import in_eight_bits
from lpvit.data.encoded import name_of, read_encoded
from lpvit.errors import LpvitError, one_line, printable
from lpvit.progress import bar

if TYPE_CHECKING:
    from lpvit.data.layouts import Split
    from lpvit.data.settings import ImageSet

_logger = logging.getLogger(__name__)

_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
_CONTAINERS = {b"ftyp" + kind: "HEIC" for kind in _HEIC} | {b"ftypavif": "AVIF", b"ftypavis": "AVIF"}  # from byte 4


def index_images(dataset: "ImageSet", threads: int = 1) -> pd.DataFrame:
    """Lists the images of both splits and decodes every file once.

    Args:
        dataset: Where they are.
        threads: Files decoded at a time.

    Returns:
        Schema ``IMAGES``: the training split first, each in the order of its layout.

    Raises:
        LpvitError: As `list_images`.
    """
    images = list_images(dataset)
    if dataset.root is not None:
        images["problem"] = pd.Series(_find_problems(dataset.root, images["path"], threads), dtype=object)
    return images


def list_images(dataset: "ImageSet") -> pd.DataFrame:
    """The same without decoding files: no image has a problem yet.

    Raises:
        LpvitError: A split is missing or empty, an image has no class, the splits do not have the same classes, or it
            is not clear which label a class has.
    """
    splits = {"train": _read(dataset, dataset.train)}
    if dataset.validation_share:
        splits = _parted(splits["train"], dataset.validation_share)
    else:
        splits["validation"] = _read(dataset, dataset.validation)
    place = str(dataset.root or dataset.source.name)
    order = ordered_classes(splits, dataset.class_order, dataset.source.numbered, place)
    labels = {of_class: label for label, of_class in enumerate(order)}
    rows = [
        (split, path, labels[of_class], order[of_class], None)
        for split, images in splits.items()
        for path, of_class in zip(images.paths, images.classes, strict=True)
    ]
    return pd.DataFrame(rows, columns=["split", "path", "label", "class_name", "problem"])


def _read(dataset: "ImageSet", name: str) -> "Split":
    """A split with class names in one Unicode form.

    Raises:
        LpvitError: A name is no text, or an image recurs.
    """
    split = dataset.source.read(dataset.folder, name)
    for path in split.paths:
        try:
            path.encode()
        except UnicodeEncodeError:
            raise LpvitError(f"{dataset.folder / printable(path)}: its name is not UTF-8; rename it") from None
    if len(set(split.paths)) < len(split.paths):
        recurring = next(path for path, count in Counter(split.paths).items() if count > 1)
        raise LpvitError(f"{dataset.folder / recurring}: is listed twice in '{name}'; every image has one class")
    return split._replace(classes=[plain_name(of_class) for of_class in split.classes])


def _parted(images: "Split", share: float) -> dict[str, "Split"]:
    """Training and validation split of images without splits."""
    of_class: dict[str, list[str]] = {}
    for path, name in zip(images.paths, images.classes, strict=True):
        of_class.setdefault(name, []).append(path)
    validating = {path for name, paths in of_class.items() for path in part_for_validation(paths, share, name)}
    rows = list(zip(images.paths, images.classes, strict=True))
    parts = {
        "train": [row for row in rows if row[0] not in validating],
        "validation": [row for row in rows if row[0] in validating],
    }
    return {
        name: images._replace(paths=[path for path, _ in part], classes=[of_class for _, of_class in part])
        for name, part in parts.items()
    }


def part_for_validation(paths: Sequence[str], share: float, name: str) -> set[str]:
    """Draws images of a class by a hash of their names, so that a new image moves at most one other.

    Args:
        paths: Of its images.
        share: Used for validation; at least one image and not all.
        name: Of the class, for the message.

    Raises:
        LpvitError: There is only one image.
    """
    if len(paths) < 2:
        owner = f"class '{name}'" if name else "the dataset"
        raise LpvitError(f"{owner} has one image, which cannot both train and validate; add images or remove it")
    count = min(max(1, round(share * len(paths))), len(paths) - 1)
    return set(sorted(paths, key=lambda path: (hashlib.sha256(name_of(path).encode()).digest(), path))[:count])


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
    """The names of all classes, by label; none of images without classes.

    Args:
        images: Schema ``IMAGES``.
    """
    return [str(name) for name in images.drop_duplicates("label").sort_values("label")["class_name"] if name]


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
            in_eight_bits(image)
    except LpvitError as error:
        return str(error)
    except UnidentifiedImageError:
        if kind := _CONTAINERS.get(content[4:12]):
            return f"{kind} image, which Pillow {PIL.__version__} does not read; convert it to JPEG or PNG"
        return "no image, or of a format that Pillow does not know"
    except Exception as error:  # Pillow raises different types for different damage
        text = re.sub(r"<_io\.BytesIO [^>]*>", "it", str(error).replace(str(file), "it"))
        return f"{type(error).__name__}: {one_line(text)}"
    return None


def _find_problems(root: Path, paths: Iterable[str], threads: int) -> list[str | None]:
    files = [root / path for path in paths]
    with ThreadPool(threads) as pool:  # Pillow decodes without holding the interpreter lock
        results = pool.imap(find_problem, files, chunksize=16)
        return list(bar(results, "checking images", "image", total=len(files)))
