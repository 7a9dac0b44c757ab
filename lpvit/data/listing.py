"""What lies in a dataset's folder, without opening a file. Imports neither pandas nor Pillow: each start lists anew."""

import hashlib
import os
from collections.abc import Iterable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

THREADS = 8  # folders listed at a time: a network file system answers late


class Listing(NamedTuple):
    """What changes when a file is added, removed, renamed or written.

    Attributes:
        files: How many.
        bytes: Of all.
        digest: Of the path, size and time of change of each.
    """

    files: int
    bytes: int
    digest: str


def list_splits(root: str | Path, splits: Iterable[str]) -> Listing:
    """Lists the files of some splits and of the class folders in them; hidden ones do not count.

    Args:
        root: Folder that holds the splits; what is missing is an empty listing.
        splits: Folders below it, or what the names of shards begin with: ``train`` of ``train-0.tar``.
    """
    places = [place for split in sorted(splits) for place in _places(Path(root), split)]
    with ThreadPool(THREADS) as pool:
        listings = pool.map(lambda place: _list_folder(Path(root), *place), places)
    digest = hashlib.sha256("".join(listing.digest for listing in listings).encode()).hexdigest()
    return Listing(sum(each.files for each in listings), sum(each.bytes for each in listings), digest[:16])


def stamps(files: Iterable[str | Path]) -> dict[str, list[int]]:
    """Size in bytes and time of change in ns of files: another in the place of one is seen, also an older one."""
    return {str(file): [(status := Path(file).stat()).st_size, status.st_mtime_ns] for file in files}


def _places(root: Path, split: str) -> list[tuple[str, str]]:
    """Folders, and what the names in them begin with."""
    folder, _, name = split.rpartition("/")
    if not (root / split).is_dir():
        return [(folder, f"{name}-")] if (root / folder).is_dir() else []
    children = [entry.name for entry in os.scandir(root / split) if entry.is_dir() and entry.name[0] != "."]
    return [(split, ""), *((f"{split}/{child}", "") for child in sorted(children))]


def _list_folder(root: Path, folder: str, start: str) -> Listing:
    files, total = [], 0
    for entry in os.scandir(root / folder):
        if entry.name[0] == "." or not entry.name.startswith(start) or entry.is_dir():
            continue
        try:
            status = entry.stat()
        except OSError:  # a link to nothing; the index says so
            files.append(f"{entry.name}\0")
            continue
        total += status.st_size
        files.append(f"{entry.name}\0{status.st_size}\0{status.st_mtime_ns}")
    text = "\0".join([folder, *sorted(files)])
    return Listing(len(files), total, hashlib.sha256(os.fsencode(text)).hexdigest())
