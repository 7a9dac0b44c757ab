"""The one exception that a user can cause and can mend, and what goes into its message."""

from collections.abc import Iterable
from difflib import get_close_matches


class LpvitError(Exception):
    """A mistake in the input, told in one line: what was named, what was found, what to do.

    Scripts print the message without a traceback; every other exception is a bug and keeps its traceback.
    """


def one_line(text: object) -> str:
    """What a file or another library says, for use within a message: one line, and not a long one."""
    return " ".join(str(text).split())[:300]


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is not among the known ones."""
    close = get_close_matches(name, known := list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(known) or 'none'}"
