"""Trade-off of two budgets at equal distortion."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lpvit.report.formats import BUDGETS
from lpvit.report.style import BLACK, GREY, percent, shades

TITLE = "Two budgets"
CATEGORY = "Pruned models"
CAPTION = (
    "Each line joins the allocations of one distortion, in multiples of that of the allocation which meets both "
    "budgets (star); the requested budgets are dashed. Along a flat or steep line one budget can be "
    "exchanged for the other at little cost."
)


def draw(frontier: pd.DataFrame, allocation: pd.DataFrame) -> Figure:
    """Trade-off of two budgets: one line per distortion, and the two budgets as requested and met.

    Args:
        frontier: Schema ``FRONTIER``.
        allocation: Schema ``ALLOCATION``, with two budgets.
    """
    row = allocation.iloc[0]
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    levels = list(frontier.groupby("level"))
    for color, (level, line) in zip(shades(len(levels)), levels, strict=True):
        axes.plot(100 * line["first"], 100 * line["second"], color=color, marker=".", label=f"{level:g} x distortion")
    axes.axvline(100 * row["target"], color=GREY, linestyle="--", linewidth=1, label="budgets")
    axes.axhline(100 * row["second_target"], color=GREY, linestyle="--", linewidth=1)
    axes.plot(
        100 * row["achieved"], 100 * row["second_achieved"], "*", color=BLACK, markersize=10, zorder=3, label="met"
    )
    axes.set(xlabel=BUDGETS[row["budget"]], ylabel=BUDGETS[row["second_budget"]])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.xaxis.set_major_formatter(percent())
    axes.yaxis.set_major_formatter(percent())
    figure.legend(loc="outside right center")
    return figure
