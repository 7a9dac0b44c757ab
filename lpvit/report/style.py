"""How figures look: one style, one palette of experiments.

Colours belong to experiments alone; whatever else a figure tells apart, it does by place, shade, line or label.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.ticker import PercentFormatter

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.3,
    "legend.frameon": False,
    "figure.titlesize": 10,
    "svg.hashsalt": "lpvit",  # the same figure is the same file
}

# Okabe and Ito's palette, which people with any form of colour blindness can tell apart, without its black (dense
# models) and its yellow (lost on white).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v")
BLACK, DARK, GREY, LIGHT = "black", "0.3", "0.45", "0.65"


@dataclass(frozen=True)
class Look:
    """How a series of experiments is drawn, everywhere."""

    color: str
    marker: str

    @property
    def size(self) -> int:
        """Of the marker, in points; a star looks smaller than it is."""
        return 10 if self.marker == "*" else 6


DENSE_LOOK = Look(BLACK, "*")


def looks(series: Mapping[str, str]) -> dict[str, Look]:
    """Series -> its look; neighbours differ in colour and in marker, so that black and white suffices.

    Args:
        series: Experiment -> its series, from `lpvit.report.series`, all experiments of the config.
    """
    names = dict.fromkeys(series.values())
    return {name: Look(COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)}


def shades(count: int) -> Any:
    """Colours for what is ordered, from dark to light, (count, 4); the lightest still reads as a line."""
    return matplotlib.colormaps["viridis"](np.linspace(0, 0.88, count))


def percent() -> PercentFormatter:
    return PercentFormatter(symbol=" %")
