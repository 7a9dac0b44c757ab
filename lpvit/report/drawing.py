"""Drawing a figure by its name, and writing it."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from lpvit.report.style import STYLE
from lpvit.store.artifacts import replace_atomically

FIGURES = "lpvit.report.figures"
DOTS_PER_INCH = 150


@matplotlib.rc_context(STYLE)
def draw(name: str, inputs: Mapping[str, Any]) -> Figure:
    """A figure in the style of all.

    Args:
        name: Of its file.
        inputs: Frames and facts, by the parameters of its ``draw``.
    """
    figure: Figure = import_module(f"{FIGURES}.{name}").draw(**inputs)
    return figure


@matplotlib.rc_context(STYLE)
def save_figure(figure: Figure, *paths: str | Path) -> None:
    """Writes a figure in the formats that the names end with (svg, png, pdf), each atomically.

    It is laid out once: every pass of the layout moves the axes of the last one a little, so a file would depend
    on what was drawn before it.

    Raises:
        LpvitError: The disk is full or the folder cannot be written.
    """
    if figure.get_layout_engine() is not None:
        figure.set_dpi(DOTS_PER_INCH)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    for path in map(Path, paths):
        kind = path.suffix.removeprefix(".")
        undated = {"Date": None} if kind == "svg" else None
        with replace_atomically(path) as partial:
            figure.savefig(partial, format=kind, dpi=DOTS_PER_INCH, metadata=undated)
