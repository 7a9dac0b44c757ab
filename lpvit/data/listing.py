"""Listing of a dataset's files without opening them. Runs at every start, so it imports neither pandas nor Pillow."""

import hashlib
import os
from collections.abc import Callable, Iterable
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

THREADS = 8  # folders listed at a time, because network file systems have high latency

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp"),
    *(".avif", ".heic", ".heif"),  # as far as Pillow reads them; the index names those that it does not
)


class Listing(NamedTuple):
    """Fingerprint of files that changes when one is added, removed, renamed or written.

    Attributes:
        files: How many.
        bytes: Of all.
        digest: Of the path, size and modification time of each.
    """

    files: int
    bytes: int
    digest: str


class _Folder(NamedTuple):
    """What a folder holds: name and stamp of its files, and paths of its subfolders."""

    path: str
    files: list[tuple[str, int, str]]
    folders: list[str]


def list_files(root: str | Path, watched: Iterable[str]) -> Listing:
    """Lists files, and folders with all files below them, except hidden ones. Links are followed.

    Args:
        root: Folder that the paths are relative to.
        watched: Files and folders. Those that do not exist do not count.
    """
    paths = sorted(set(watched))
    folders = [path for path in paths if Path(root, path).is_dir()]
    files = sorted(set(paths) - set(folders))
    with ThreadPool(THREADS) as pool:
        stamped = pool.map(lambda path: _stamped(path, partial(os.stat, Path(root, path))), files, chunksize=64)
    found = [_Folder("", [file for file in stamped if file[2]], []), *_walk(Path(root), folders)]
    digest = hashlib.sha256()
    for folder in found:
        digest.update(os.fsencode("\0".join([folder.path, *(f"{n}\0{stamp}" for n, _, stamp in folder.files), "\0"])))
    sizes = [size for folder in found for _, size, _ in folder.files]
    return Listing(len(sizes), sum(sizes), digest.hexdigest()[:16])


def files_below(root: str | Path, folders: Iterable[str]) -> dict[str, list[str]]:
    """Name of a folder -> paths of the files below it, in lexical order, without hidden ones. Links are followed."""
    found: dict[str, list[str]] = {folder: [] for folder in folders}
    for below in _walk(Path(root), list(found), stamped=False):
        folder, slash, rest = below.path.partition("/")
        found[folder] += [f"{rest}{slash}{name}" for name, _, _ in below.files]
    return {folder: sorted(files) for folder, files in found.items()}


def is_image(file: str) -> bool:
    """Whether a file is named like an image."""
    return file.lower().endswith(IMAGE_SUFFIXES)


def stamps(files: Iterable[str | Path]) -> dict[str, list[int]]:
    """Size in bytes and modification time in ns of files: detects a replaced file, also by an older one."""
    return {str(file): [(status := Path(file).stat()).st_size, status.st_mtime_ns] for file in files}


def _walk(root: Path, folders: list[str], stamped: bool = True) -> list[_Folder]:
    """Folders with all folders below them, level by level; stamps of their files cost a call each."""
    found: list[_Folder] = []
    with ThreadPool(THREADS) as pool:
        while folders:
            level = pool.map(partial(_list_folder, root, stamped), folders)
            found += level
            folders = [path for folder in level for path in folder.folders]
    return found


def _list_folder(root: Path, stamped: bool, path: str) -> _Folder:
    files, folders = [], []
    with os.scandir(root / path) as entries:
        for entry in entries:
            if entry.name[0] == ".":
                continue
            if not entry.is_dir():
                files.append(_stamped(entry.name, entry.stat) if stamped else (entry.name, 0, ""))
            elif not (entry.is_symlink() and _leads_back(entry.path)):
                folders.append(f"{path}/{entry.name}")
    return _Folder(path, sorted(files), sorted(folders))


def _leads_back(link: str) -> bool:
    """Whether a link points to a folder that contains it, directly or not."""
    inside, target = Path(link).parent.resolve(), Path(link).resolve()
    return inside.is_relative_to(target)


def _stamped(name: str, status_of: Callable[[], os.stat_result]) -> tuple[str, int, str]:
    """Name, bytes and stamp of a file."""
    try:
        status = status_of()
    except OSError:  # a broken link; the index reports it
        return name, 0, ""
    return name, status.st_size, f"{status.st_size} {status.st_mtime_ns}"
