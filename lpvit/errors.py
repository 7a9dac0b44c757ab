"""The exception for user errors, and helpers for its message."""

from collections.abc import Iterable, Sequence
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


def some_of(names: Sequence[str]) -> str:
    """The first three of some names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{printable(name)}'" for name in names[:3]) + more


def printable(name: object) -> str:
    """A file's name for a message, also if it is not text in UTF-8."""
    return str(name).encode(errors="backslashreplace").decode()


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is not among the known ones."""
    close = get_close_matches(name, known := list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(known) or 'none'}"
