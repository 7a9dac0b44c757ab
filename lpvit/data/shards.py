"""Files that hold many images each."""

import glob
from pathlib import Path

from lpvit.data.layouts import split_names
from lpvit.errors import LpvitError


def shards_of(root: Path, split: str, suffix: str) -> list[str]:
    """Paths below ``root`` in lexical order: those in a folder, else those whose names begin with the split.

    Args:
        root: Folder of the dataset.
        split: ``train``: ``train/*.tar``, ``train-*.tar`` or ``train.tar``.
        suffix: ``.tar``.
    """
    start = glob.escape(split)
    patterns = [f"{start}/*{suffix}", *(f"{start}{between}{suffix}" for between in ("-*", "_*", ".*", ""))]
    found = (sorted(root.glob(pattern)) for pattern in patterns)
    return [shard.relative_to(root).as_posix() for shard in next(filter(None, found), []) if shard.name[0] != "."]


def require_shards(root: Path, split: str, suffix: str) -> list[str]:
    """The same.

    Raises:
        LpvitError: There are none.
    """
    shards = shards_of(root, split, suffix)
    if not shards:
        raise LpvitError(
            f"{root}: no {split}/*{suffix}, {split}-*{suffix} or {split}{suffix}; "
            "correct 'root', 'train' or 'validation'"
        )
    return shards


def recognise_shards(folder: Path, suffix: str) -> tuple[str, str | None] | None:
    """The training and validation split of the shards in a folder, or in the folders in it; None if there are none."""
    beside = [path.name for path in folder.glob(f"*{suffix}") if path.name[0] != "."]
    within = [path.name for path in folder.iterdir() if path.is_dir() and shards_of(folder, path.name, suffix)]
    for names in (beside, within):
        if found := split_names(names):
            return found
    return (".", None) if beside else None
