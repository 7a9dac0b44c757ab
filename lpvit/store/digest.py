"""The digest that a file carries of itself: a byte that changed on the disk is noticed before anything is read.

It stands where the format leaves room for a word: in the comment of a zip archive (`.pt`), in the metadata of parquet
and of safetensors. It covers every byte of the file but its own, headers included. It guards against damage, not
against a forger, who could write it too.
"""

import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lpvit.errors import LpvitError

_MARK = b"lpvit digest "
_DIGITS = 32
_WINDOW = 2**20  # the mark lies in the first or the last megabyte: before or after the data
_BLOCK = 2**18  # bytes, which stay in the processor's cache
_ROW = 2**11

BLANK = (_MARK + b"0" * _DIGITS).decode()  # what a writer puts into the file, for `seal` to fill in


def seal(path: str | Path) -> None:
    """Fills in the digest of a file that was written with a `BLANK`."""
    with Path(path).open("r+b") as file:
        place = _place(file)
        assert place is not None, f"{path}: no blank for the digest"
        digest = _digest(file, place)
        file.seek(place)
        file.write(digest)


def verify(path: str | Path, cure: str = "delete it and rerun") -> None:
    """Makes sure that a file is as it was when it was sealed. Reads it once, at the speed of memory.

    Args:
        path: Any file.
        cure: What the user should do about a damaged one.

    Raises:
        LpvitError: The file is missing or no file, cannot be read, was not sealed, or has changed since.
    """
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # a pipe would be waited for
            raise LpvitError(f"{path}: cannot be read (not a file); {cure}")
        with Path(path).open("rb") as file:
            place = _place(file)
            found = None if place is None else os.pread(file.fileno(), _DIGITS, place)
            expected = None if place is None else _digest(file, place)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise LpvitError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); {cure}") from None
    if found is None:
        raise LpvitError(
            f"{path}: cannot be read (it carries no digest: damaged, of an older lpvit or not from lpvit); {cure}"
        )
    if found != expected:
        raise LpvitError(f"{path}: cannot be read (damaged: its content does not match its digest); {cure}")


def _place(file: BinaryIO) -> int | None:
    """Where the digest stands, in bytes from the start."""
    number, size = file.fileno(), os.fstat(file.fileno()).st_size
    for start, seek in ((0, bytes.find), (max(0, size - _WINDOW), bytes.rfind)):
        if (place := seek(os.pread(number, _WINDOW, start), _MARK)) >= 0:
            return start + place + len(_MARK)
    return None


def _digest(file: BinaryIO, place: int) -> bytes:
    """Hexadecimal digest of all bytes but those at ``place``.

    A cryptographic hash takes as long as the read itself. So every block is summed up first, as a matrix of 64-bit
    numbers by rows and by columns, of which the hash is taken: no change of up to three numbers leaves all sums alike,
    and one of more only by a chance of 2^-64 or worse.
    """
    digest = hashlib.blake2b(digest_size=_DIGITS // 2)
    digest.update(os.fstat(file.fileno()).st_size.to_bytes(8, "little"))
    buffer = np.empty(_BLOCK, np.uint8)
    start = file.seek(0)
    while count := file.readinto(buffer):  # type: ignore[attr-defined]
        buffer[max(0, place - start) : max(0, place + _DIGITS - start)] = 0  # beyond the block there is nothing
        whole = count // _ROW * _ROW
        numbers = buffer[:whole].view(np.uint64).reshape(-1, _ROW // 8)
        digest.update(numbers.sum(axis=1))
        digest.update(numbers.sum(axis=0))
        digest.update(buffer[whole:count])
        start += count
    return digest.hexdigest().encode()
