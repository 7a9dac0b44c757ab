"""Checks of the arguments of the public functions, before any work."""

import os
from pathlib import Path
from typing import Any

from lpvit.errors import LpvitError


def require_type(name: str, value: object, kind: Any, expected: str) -> None:
    """Checks the type of an argument.

    Args:
        name: Of the argument.
        value: What was given.
        kind: As for `isinstance`.
        expected: For the message.

    Raises:
        LpvitError: It is of another type.
    """
    if not isinstance(value, kind):
        raise LpvitError(f"{name}: found {described(value)}, expected {expected}")


def require_path(path: object, folder: bool = False) -> Path:
    """The path of a file, read or written.

    Args:
        path: What was given.
        folder: Whether it may be of a folder as well.

    Raises:
        LpvitError: It is no path, or of no file.
    """
    require_type("path", path, str | os.PathLike, "the path of a file")
    text = os.fspath(path)  # type: ignore[call-overload]  # checked above
    if (
        not isinstance(text, str)
        or "\0" in text
        or len(os.fsencode(Path(text).name)) > 255
        or (not folder and (not Path(text).name or Path(text).is_dir()))
    ):
        raise LpvitError(f"path: found {text!r:.200}, expected the path of a file{' or folder' * folder}")
    return Path(text)


def require_file(path: Path) -> None:
    """Checks that a file is there.

    Raises:
        LpvitError: It is missing, or a folder.
    """
    if not path.is_file():
        raise LpvitError(f"{path}: {'is a folder, expected a file' if path.is_dir() else 'file not found'}")


def require_count(name: str, value: object) -> None:
    """Checks that an argument is a positive whole number.

    Raises:
        LpvitError: It is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise LpvitError(f"{name}: found {described(value)}, expected a positive whole number")


def described(value: object) -> str:
    """A value in a message: itself where it is short and plain, else its type."""
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)[:60]
    return f"{type(value).__name__}"
