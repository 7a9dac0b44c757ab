"""The order of classes: which label a class has. One rule for all layouts, loaders and models.

Labels follow the names of the classes in lexical order, as in torchvision and DALI; where the dataset numbers its
classes, they are those numbers. ``class_order`` of a dataset asks for another order.
"""

import itertools
import logging
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lpvit.errors import LpvitError, one_line, some_of

if TYPE_CHECKING:
    from lpvit.data.layouts import Split

_logger = logging.getLogger(__name__)

Order = str | Path | None  # as in the config: `name`, `natural`, a file, or none


def plain_name(name: str) -> str:
    """A class name in one Unicode form: file systems differ in how they write accents."""
    return unicodedata.normalize("NFC", name)


def ordered_classes(splits: Mapping[str, "Split"], order: Order, numbered: bool, place: str) -> dict[str, str]:
    """All classes as the splits have them, in the order of their labels, each with its name.

    Args:
        splits: Both splits.
        order: ``name``, ``natural`` or a file of names; None is by name, and an error where that is a guess.
        numbered: Whether the layout takes the numbers 0, 1, 2, ... as labels.
        place: The dataset, for messages.

    Returns:
        Class -> name; they differ where a file names classes that have only numbers.

    Raises:
        LpvitError: The splits have other classes, or number them otherwise; or the order is not clear.
    """
    found = {split: list(dict.fromkeys(images.classes)) for split, images in splits.items()}
    _require_same(found, place)
    names = sorted(found["train"])
    if order not in (None, "name", "natural"):
        return _in_file(Path(str(order)), names, numbered, place)
    if order == "natural":
        names = sorted(names, key=natural_key)
    elif order is None:
        names = _unasked(splits, names, numbered, place)
    return dict(zip(names, names, strict=True))


def _unasked(splits: Mapping[str, "Split"], names: list[str], numbered: bool, place: str) -> list[str]:
    """The order where ``class_order`` is not set."""
    given = {split: [plain_name(name) for name in images.names] for split, images in splits.items() if images.names}
    if given:
        return _as_numbered(given, names, place)
    return _numbers(names, numbered, place) if all(map(str.isdecimal, names)) else names


def natural_key(name: str) -> list[tuple[bool, int, str]]:
    """Sorts ``img2`` before ``img10``."""
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.findall(r"\d+|\D+", name)]


def require_same_order(known: Sequence[str], found: Sequence[str], whose: str) -> None:
    """Checks the labels of a dataset against those that a model was trained with.

    Args:
        known: Classes of the model, by label; empty if the model does not say.
        found: Classes of the dataset, by label.
        whose: The model, for the message.

    Raises:
        LpvitError: A label means another class.
    """
    if not known or list(known) == list(found):
        return
    if len(known) != len(found):
        raise LpvitError(f"{whose}: knows {len(known)} classes, the dataset has {len(found)}")
    label, mine, theirs = next((n, a, b) for n, (a, b) in enumerate(zip(known, found, strict=True)) if a != b)
    reordered = "correct 'class_order', or the order of your own dataset"
    remedy = reordered if set(known) == set(found) else "it was trained on others"
    raise LpvitError(f"{whose}: label {label} is '{mine}', in the dataset '{theirs}'; {remedy}")


def _require_same(found: Mapping[str, list[str]], place: str) -> None:
    only = {
        "train": sorted(set(found["train"]) - set(found["validation"])),
        "validation": sorted(set(found["validation"]) - set(found["train"])),
    }
    problems = [f"{split} alone has {some_of(names)}" for split, names in only.items() if names]
    if problems:
        raise LpvitError(f"{place}: classes differ between the splits: {'; '.join(problems)}; both need the same")


def _as_numbered(given: Mapping[str, Sequence[str]], names: Sequence[str], place: str) -> list[str]:
    """The order in which the dataset numbers its classes, the same in both splits."""
    order = list(given["train"] if "train" in given else given["validation"])
    for split, others in given.items():
        for label, (mine, theirs) in enumerate(zip(order, others, strict=False)):
            if mine != theirs:
                raise LpvitError(
                    f"{place}: class {label} is '{mine}' in train, '{theirs}' in {split}; write both again, "
                    "or go by names: 'class_order: name'"
                )
    last = max(order.index(name) for name in names)
    if missing := sorted(set(order[:last]) - set(names)):
        raise LpvitError(f"{place}: no image of class {some_of(missing)}; every class needs images")
    if order[last + 1 :]:
        _logger.warning("%s: classes without images are left out: %s", place, some_of(order[last + 1 :]))
    return order[: last + 1]


def _numbers(names: Sequence[str], numbered: bool, place: str) -> list[str]:
    natural = sorted(names, key=natural_key)
    if numbered and [int(name) for name in natural] == list(range(len(natural))):
        return natural
    if numbered and len({int(name) for name in natural}) == len(natural):
        missing = next(number for number in range(len(names) + 1) if str(number) not in set(names))
        raise LpvitError(
            f"{place}: no image of class {missing}; classes are numbered from 0 on without gaps, or set "
            "'class_order: natural'"
        )
    if natural != list(names):
        ten, two = next((a, b) for a, b in itertools.pairwise(names) if natural_key(a) > natural_key(b))
        raise LpvitError(
            f"{place}: classes are numbers, and '{ten}' comes before '{two}' by name; set 'class_order: natural' "
            "for 0, 1, 2, 10 (as timm), or 'class_order: name' for 0, 1, 10, 2 (as torchvision)"
        )
    return list(names)


def _in_file(file: Path, names: Sequence[str], numbered: bool, place: str) -> dict[str, str]:
    """The order of a file; it names classes that have only numbers."""
    try:
        lines = [plain_name(line.strip()) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise LpvitError(f"class_order: {file}: cannot be read ({one_line(error)}); correct the path") from None
    if len(set(lines)) < len(lines):
        raise LpvitError(
            f"class_order: {file}: names {some_of(sorted({n for n in lines if lines.count(n) > 1}))} twice"
        )
    numbers = [str(label) for label in range(len(lines))]
    if numbered and set(names) == set(numbers):
        return dict(zip(numbers, lines, strict=True))
    if set(lines) != set(names):
        without, unknown = sorted(set(names) - set(lines)), sorted(set(lines) - set(names))
        problems = [f"lacks {some_of(without)}"] * bool(without) + [f"has {some_of(unknown)} besides"] * bool(unknown)
        raise LpvitError(f"class_order: {file}: {' and '.join(problems)}; name each class of {place} in one line")
    return dict(zip(lines, lines, strict=True))
