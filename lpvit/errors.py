"""The exception for user errors, and helpers for its message."""

from collections.abc import Iterable
from difflib import get_close_matches


class LpvitError(Exception):
    """A user error in one line: the file or key, what was found, what to do.

    Scripts print the message without a traceback; every other exception is a bug and keeps its traceback.
    """


def one_line(text: object) -> str:
    """Text of a file or another library, shortened to one line for use in a message."""
    return " ".join(str(text).split())[:300]


def similar(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is not among very many known ones."""
    close = get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is not among the known ones."""
    close = get_close_matches(name, known := list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(known) or 'none'}"
