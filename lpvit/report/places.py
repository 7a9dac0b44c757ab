"""Helpers of figures of accuracy against a cost: a mark for every model, and the legend."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lpvit.report.style import DENSE_LOOK, Look

LEGEND_ROWS = 14


def draw_models(axes: Axes, rows: pd.DataFrame, cost: str, look: Look, line: str = "-") -> None:
    """A mark for each row at its cost and top-1, with intervals where available."""
    axes.errorbar(
        rows[cost],
        rows["top1"],
        xerr=_reach(rows, cost),
        yerr=_reach(rows, "top1"),
        color=look.color,
        marker=look.marker,
        markersize=look.size,
        linestyle=line,
        elinewidth=1,
        capsize=2,
        zorder=3,
    )


def draw_dense(axes: Axes, dense: pd.DataFrame, cost: str) -> None:
    draw_models(axes, dense, cost, DENSE_LOOK, line="")
    for row in dense.to_dict("records"):
        axes.annotate(str(row["model"]), (row[cost], row["top1"]), (-6, 6), textcoords="offset points", ha="right")


def legend(figure: Figure, look_of: Mapping[str, Look], experiments: pd.Series, series: Mapping[str, str]) -> None:
    shown = {series[name] for name in experiments if name}
    marks = [("dense", DENSE_LOOK)] + [(name, look) for name, look in look_of.items() if name in shown]
    handles = [
        Line2D([], [], color=look.color, marker=look.marker, markersize=look.size, linestyle="", label=name)
        for name, look in marks
    ]
    figure.legend(handles=handles, loc="outside right center", ncols=-(-len(handles) // LEGEND_ROWS))


def _reach(rows: pd.DataFrame, name: str) -> list[pd.Series] | None:
    """Distances from the value to the ends of an interval."""
    if f"{name}_low" not in rows:
        return None
    return [rows[name] - rows[f"{name}_low"], rows[f"{name}_high"] - rows[name]]
