"""Progress bars: one switch for all; every bar shows its task and pruning round.

They are drawn on a terminal only, so logs contain no bars.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from tqdm import tqdm

_Item = TypeVar("_Item")

_shown = os.environ.get("LPVIT_PROGRESS", "1") != "0"
_step: ContextVar[str] = ContextVar("step", default="")


def show_progress(shown: bool) -> None:
    """Enables or disables progress bars on a terminal; the default is enabled unless ``LPVIT_PROGRESS`` is 0."""
    global _shown  # noqa: PLW0603  a global switch
    _shown = shown


@contextmanager
def labelled(step: str) -> Iterator[None]:
    """Puts ``step`` before the label of every bar within, for example ``round 2 of 4``."""
    token = _step.set(f"{step}: ")
    try:
        yield
    finally:
        _step.reset(token)


def bar(
    items: Iterable[_Item], what: str, unit: str, *, total: int | None = None, leave: bool = True, shown: bool = True
) -> "tqdm[_Item]":
    """The items, with a bar on the terminal.

    Args:
        items: What is iterated over.
        what: Label, after that of `labelled`.
        unit: Of an item.
        total: Number of items, if they have no length.
        leave: Keep the bar at the end.
        shown: False in all but one process.
    """
    disable = None if shown and _shown else True  # None draws on terminals
    return tqdm(items, f"{_step.get()}{what}", total=total, unit=unit, leave=leave, disable=disable)
