"""Progress bars: labelled, and off where they are not wanted."""

import io
from contextlib import redirect_stderr

import pytest

from lpvit.progress import bar, labelled, show_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(on: io.StringIO) -> str:
    with redirect_stderr(on), labelled("step 2 of 4"):
        assert list(bar([1, 2], "gradients", "batch")) == [1, 2]
    return on.getvalue()


def test_a_bar_says_what_runs_and_which_step_it_belongs_to() -> None:
    assert "step 2 of 4: gradients: 100%" in drawn(Terminal())


def test_bars_are_switched_off_at_once_for_all(request: pytest.FixtureRequest) -> None:
    request.addfinalizer(lambda: show_progress(True))
    show_progress(False)
    assert drawn(Terminal()) == ""


def test_a_log_file_gets_no_bars() -> None:
    assert drawn(io.StringIO()) == ""
