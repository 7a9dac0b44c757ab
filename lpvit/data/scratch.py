"""A copy of images on a local disk."""

import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pyarrow as pa

from lpvit.data.encoded import file_of, name_of, read_encoded
from lpvit.errors import LpvitError
from lpvit.progress import bar
from lpvit.store.artifacts import replace_atomically

_READERS = 16  # because shared file systems have high latency
_BATCH = 1024  # images read at a time

_logger = logging.getLogger(__name__)


def copy_to_scratch(paths: Sequence[str], root: Path, scratch: Path) -> list[str]:
    """Copies images into one file, or uses an existing copy.

    Processes that need the same images wait for the first of them. A copy is valid if paths, file sizes and
    modification times are the same. Nothing is ever deleted.

    Args:
        paths: Below ``root``; see `lpvit.data.encoded`.
        root: Folder of the dataset.
        scratch: Existing folder of the copies.

    Returns:
        Paths of the same images, below ``scratch``.

    Raises:
        LpvitError: An image cannot be read, or the disk is full.
    """
    digest = _digest(paths, root)
    images, sizes = scratch / f"{digest}.images", scratch / f"{digest}.sizes.npy"
    with _held(scratch / f"{digest}.lock"):
        if sizes.exists():  # written last
            _logger.info("scratch: %d images are already in %s", len(paths), images)
        else:
            with replace_atomically(sizes) as partial, partial.open("wb") as file:
                np.save(file, _copy([root / path for path in paths], images))
    ends = np.load(sizes).cumsum()
    starts = np.concatenate([[0], ends[:-1]])
    return [
        f"{images.name}@{start}+{end - start}/{name_of(path)}"
        for path, start, end in zip(paths, starts.tolist(), ends.tolist(), strict=True)
    ]


def scratch_folder(configured: Path) -> Path:
    """The folder ``compute.scratch``, with variables such as ``$TMPDIR`` expanded.

    Raises:
        LpvitError: A variable is not set, or the folder cannot be made.
    """
    folder = Path(os.path.expandvars(configured))
    if "$" in str(folder):
        raise LpvitError(f"compute.scratch: {configured}: the variable is not set on this machine")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LpvitError(f"compute.scratch: {folder}: {error.strerror}; choose another folder") from None
    return folder


def _copy(files: Sequence[Path], images: Path) -> np.ndarray:
    """Writes the images; their sizes, int64."""
    sizes: list[int] = []
    batches = range(0, len(files), _BATCH)
    with replace_atomically(images) as partial, partial.open("wb") as copy, ThreadPool(_READERS) as pool:
        for start in bar(batches, "copying to scratch", "batch", total=len(batches)):
            sizes += map(copy.write, pool.map(_read, files[start : start + _BATCH]))
    _logger.info("scratch: %d images, %.1f GB, copied to %s", len(files), sum(sizes) / 1e9, images)
    return np.array(sizes, dtype=np.int64)


def _read(file: Path) -> bytes:
    try:
        return read_encoded(file)
    except (OSError, pa.ArrowException) as error:
        raise LpvitError(f"{file}: cannot be read ({error}); replace or remove it") from None


def _digest(paths: Sequence[str], root: Path) -> str:
    files = sorted({file_of(path) for path in paths})
    with ThreadPool(_READERS) as pool:
        stamps = pool.map(lambda file: _stamp(root / file), files, chunksize=64)
    content = "\0".join([str(root.resolve()), *paths, *stamps])
    return hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()[:16]


def _stamp(file: Path) -> str:
    try:
        status = file.stat()
    except OSError as error:
        raise LpvitError(f"{file}: cannot be read ({error.strerror}); replace or remove it") from None
    return f"{status.st_size} {status.st_mtime_ns}"


@contextmanager
def _held(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the process ends
        yield
