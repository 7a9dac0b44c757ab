"""A digest inside each file, which detects changed bytes before the file is used.

It is stored in the comment of a zip archive (`.pt`) or in the metadata of parquet and safetensors. It covers every byte
of the file except its own, including headers. It detects damage, not forgery: a forger could write a valid digest.
"""

import mmap
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

from lpvit.errors import LpvitError

_MARK = b"lpvit xxh3 "
_DIGITS = 32
_WINDOW = 2**20  # the mark is in the first or the last megabyte: before or after the data

BLANK = (_MARK + b"0" * _DIGITS).decode()  # placeholder in a new file, replaced by `seal`


def seal(path: str | Path) -> None:
    """Fills in the digest of a file that was written with a `BLANK`."""
    with _mapped(path) as content:
        place = _place(content)
        assert place is not None, f"{path}: no blank for the digest"
        digest = _digest(content, place)
    with Path(path).open("r+b") as file:
        file.seek(place)
        file.write(digest)


def verify(path: str | Path, cure: str = "delete it and rerun") -> None:
    """Checks that a file has not changed since it was sealed. Reads it once, at memory speed.

    Args:
        path: Any file.
        cure: Remedy in the error message.

    Raises:
        LpvitError: The file is missing or no file, cannot be read, was not sealed, or has changed since.
    """
    found = expected = None
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would block
            raise LpvitError(f"{path}: cannot be read (not a file); {cure}")
        if status.st_size:  # an empty file cannot be mapped
            with _mapped(path) as content:
                if (place := _place(content)) is not None:
                    found, expected = content[place : place + _DIGITS], _digest(content, place)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise LpvitError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); {cure}") from None
    if found is None:
        raise LpvitError(
            f"{path}: cannot be read (it carries no digest: damaged, of an older lpvit or not from lpvit); {cure}"
        )
    if found != expected:
        raise LpvitError(f"{path}: cannot be read (damaged: its content does not match its digest); {cure}")


@contextmanager
def _mapped(path: str | Path) -> Iterator[mmap.mmap]:
    """The bytes of a file, without a copy."""
    with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content


def _place(content: mmap.mmap) -> int | None:
    """Offset of the digest in bytes."""
    place = content.find(_MARK, 0, _WINDOW)
    if place < 0:
        place = content.rfind(_MARK, max(0, len(content) - _WINDOW))
    return None if place < 0 else place + len(_MARK)


def _digest(content: mmap.mmap, place: int) -> bytes:
    """Hexadecimal XXH3 (128 bits) of all bytes but those at ``place``."""
    digest = xxhash.xxh3_128()
    with memoryview(content) as view:
        for part in (view[:place], view[place + _DIGITS :]):
            with part:
                digest.update(part)
    return digest.hexdigest().encode()
