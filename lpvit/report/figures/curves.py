"""Rate-distortion curves of all layers."""

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lpvit.report.layers import panels, place_layers
from lpvit.report.style import shades

TITLE = "Rate-distortion curves"
CATEGORY = "Rate-distortion curves"
CAPTION = (
    "One line per layer: distortion of the logits on the calibration images by pruning its blocks by rising "
    "saliency. Layers with low lines can be pruned at little distortion."
)
DECADES_SHOWN = 3  # of the lowest curve; predicted curves may reach zero, and values far below carry no information


def draw(curves: pd.DataFrame, costs: pd.DataFrame, unit: str) -> Figure:
    """Rate-distortion curves: one panel per role, one line per layer, coloured by depth.

    Args:
        curves: Schema ``CURVES``.
        costs: Schema ``COSTS``; gives roles and order of execution.
        unit: Of the distortion.
    """
    layers = place_layers(costs, curves["layer"].unique())
    roles = list(layers["role"].unique())
    figure, axes = panels(len(roles), columns=4)
    depth_colors = _depth_colors(layers["depth"])
    for panel, role in zip(axes, roles, strict=True):
        for layer, depth in layers.loc[layers["role"] == role, "depth"].items():
            curve = curves[curves["layer"] == layer]
            positive = curve[curve["distortion"] > 0]  # others have no logarithm
            panel.plot(
                100 * positive["sparsity"], positive["distortion"], color=depth_colors.to_rgba(depth), label=layer
            )
        panel.set(title=role, yscale="log", xlim=(0, 100))
        panel.set_xticks([0, 50, 100])
        panel.tick_params(labelbottom=True)  # also above an empty place
    axes[0].set_ylim(bottom=max(axes[0].get_ylim()[0], lowest_shown(curves)))
    figure.supxlabel("sparsity of the layer (%)", fontsize="medium")
    figure.supylabel(f"distortion ({unit})", fontsize="medium")
    bar = figure.colorbar(depth_colors, ax=axes, label="transformer block", aspect=30, pad=0.01)
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    bar.ax.minorticks_off()
    return figure


def lowest_shown(curves: pd.DataFrame) -> float:
    """Lower limit of the distortion axis: far enough below the lowest curve's end to separate the lines."""
    highest = curves.groupby("layer")["distortion"].max()
    return float(highest[highest > 0].min() * 10.0**-DECADES_SHOWN)


def _depth_colors(depth: pd.Series) -> ScalarMappable:
    edges = np.arange(depth.min(), depth.max() + 2) - 0.5
    return ScalarMappable(BoundaryNorm(edges, len(edges) - 1), ListedColormap(shades(len(edges) - 1)))
