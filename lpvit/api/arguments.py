"""Checks of the arguments of the public functions, before any work."""

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


def described(value: object) -> str:
    """A value in a message: itself where it is short and plain, else its type."""
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)[:60]
    return f"{type(value).__name__}"
