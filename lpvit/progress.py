"""Progress bars: one switch for all, and every bar says what runs and which step of a method it belongs to.

They are drawn on a terminal only, so that a log holds lines and no bars.
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
    """Shows progress bars on a terminal, or none; at first as ``LPVIT_PROGRESS`` says, which is 0 for none."""
    global _shown  # noqa: PLW0603  a switch is one
    _shown = shown


@contextmanager
def labelled(step: str) -> Iterator[None]:
    """Puts ``step`` before the label of every bar within, for example ``step 2 of 4``."""
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
        items: What is gone through.
        what: Label, beside that of `labelled`.
        unit: Of an item.
        total: How many there are, where they have no length.
        leave: Keep the bar when it is full.
        shown: False in all processes but one.
    """
    disable = None if shown and _shown else True  # None draws on terminals
    return tqdm(items, f"{_step.get()}{what}", total=total, unit=unit, leave=leave, disable=disable)
