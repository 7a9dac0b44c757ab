"""Listing of a dataset's folder without opening files. Runs at every start, so it imports neither pandas nor Pillow."""

import hashlib
import os
from collections.abc import Iterable
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

THREADS = 8  # folders listed at a time, because network file systems have high latency


class Listing(NamedTuple):
    """Fingerprint of a folder that changes when a file is added, removed, renamed or written.

    Attributes:
        files: How many.
        bytes: Of all.
        digest: Of the path, size and modification time of each.
    """

    files: int
    bytes: int
    digest: str


def list_splits(root: str | Path, splits: Iterable[str]) -> Listing:
    """Lists the files of some splits and their subfolders, except hidden ones.

    Args:
        root: Folder that holds the splits; a missing folder is an empty listing.
        splits: Folders below it, or what the names of their shards begin with.
    """
    folders = [folder for split in sorted(splits) for folder in _folders(Path(root), split)]
    with ThreadPool(THREADS) as pool:
        listings = pool.starmap(partial(_list_folder, Path(root)), folders)
    digest = hashlib.sha256("".join(listing.digest for listing in listings).encode()).hexdigest()
    return Listing(sum(each.files for each in listings), sum(each.bytes for each in listings), digest[:16])


def stamps(files: Iterable[str | Path]) -> dict[str, list[int]]:
    """Size in bytes and modification time in ns of files: detects a replaced file, also by an older one."""
    return {str(file): [(status := Path(file).stat()).st_size, status.st_mtime_ns] for file in files}


def _folders(root: Path, split: str) -> list[tuple[str, str]]:
    """Folder and name prefix of the files of a split."""
    if not (root / split).is_dir():
        folder, _, name = split.rpartition("/")
        return [(folder, f"{name}-")] if (root / folder).is_dir() else []
    found = []
    for place, folders, _ in os.walk(root / split):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        found.append((os.path.relpath(place, root), ""))
    return found


def _list_folder(root: Path, folder: str, start: str) -> Listing:
    files, total = [], 0
    for entry in os.scandir(root / folder):
        if entry.name[0] == "." or not entry.name.startswith(start) or entry.is_dir():
            continue
        try:
            status = entry.stat()
        except OSError:  # a broken link; the index reports it
            files.append(f"{entry.name}\0")
            continue
        total += status.st_size
        files.append(f"{entry.name}\0{status.st_size}\0{status.st_mtime_ns}")
    text = "\0".join([folder, *sorted(files)])
    return Listing(len(files), total, hashlib.sha256(os.fsencode(text)).hexdigest())
