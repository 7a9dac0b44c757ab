"""Style of figures: one style, one palette of experiments.

Colours identify experiments only; everything else is distinguished by position, shade, line or label.
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
    "svg.hashsalt": "lpvit",  # makes files reproducible
}

# Okabe and Ito's palette, suitable for any form of colour blindness, without its black (used for dense models) and its
# yellow (invisible on white).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v")
BLACK, DARK, GREY, LIGHT = "black", "0.3", "0.45", "0.65"


@dataclass(frozen=True)
class Look:
    """The style of a series of experiments in all figures."""

    color: str
    marker: str

    @property
    def size(self) -> int:
        """Size of the marker in points; larger for a star, which looks small."""
        return 10 if self.marker == "*" else 6


DENSE_LOOK = Look(BLACK, "*")


def looks(series: Mapping[str, str]) -> dict[str, Look]:
    """Series -> its style; neighbours differ in colour and marker, so black and white is sufficient.

    Args:
        series: Experiment -> its series, from `lpvit.report.series`, all experiments of the config.
    """
    names = dict.fromkeys(series.values())
    return {name: Look(COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)}


def shades(count: int) -> Any:
    """Sequential colours from dark to light, (count, 4); the lightest is still visible as a line."""
    return matplotlib.colormaps["viridis"](np.linspace(0, 0.88, count))


def percent() -> PercentFormatter:
    return PercentFormatter(symbol=" %")
