"""Outcomes of the models that were tried for a budget."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lpvit.report.style import BLACK, GREY, percent

TITLE = "Search for the budget"
CATEGORY = "Pruned models"
CAPTION = (
    "What was measured of the compressed models that were tried, before fine-tuning, with the 95 % interval. The "
    "dashed line is the budget, the star the model that was chosen."
)
LABELS = {
    "points_lost": "top-1 points lost on held-out training images",
    "milliseconds": "milliseconds for one image",
}


def draw(outcomes: pd.DataFrame) -> Figure:
    """Outcome against the share of MACs, of every model that was tried.

    Args:
        outcomes: Schema ``OUTCOMES``.
    """
    tried = outcomes.sort_values("macs")
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    errors = [tried["value"] - tried["low"], tried["high"] - tried["value"]]
    macs = 100 * tried["macs"]
    axes.errorbar(macs, tried["value"], yerr=errors, fmt="o-", color=GREY, ecolor=GREY, capsize=3, label="tried")
    chosen = tried[tried["chosen"]]
    axes.plot(100 * chosen["macs"], chosen["value"], "*", color=BLACK, markersize=11, zorder=3, label="chosen")
    axes.axhline(tried["target"].iloc[0], color=BLACK, linestyle="--", linewidth=1, label="budget")
    axes.set(xlabel="MACs of the dense model kept", ylabel=LABELS[tried["outcome"].iloc[0]])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.xaxis.set_major_formatter(percent())
    figure.legend(loc="outside right center")
    return figure
