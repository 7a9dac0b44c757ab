"""The one exception that a user can cause and can mend."""


class LpvitError(Exception):
    """A mistake in the input, told in one line: what was named, what was found, what to do.

    Scripts print the message without a traceback; every other exception is a bug and keeps its traceback.
    """
