"""The exception for user errors, and helpers for its message."""


class LpvitError(Exception):
    """A user error in one line: the file or key, what was found, what to do.

    Scripts print the message without a traceback; every other exception is a bug and keeps its traceback.
    """


def one_line(text: object) -> str:
    """Text of a file or another library, shortened to one line for use in a message."""
    return " ".join(str(text).split())[:300]
