"""Rate-distortion curves of all layers."""

import pandas as pd
from matplotlib.figure import Figure

from lpvit.report.layers import colors_by_depth, depth_bar, panels, place_layers

TITLE = "Rate-distortion curves"
CATEGORY = "Rate-distortion curves"
CAPTION = (
    "One line per layer: distortion of the logits on the calibration images by removing its {units}, those that matter "
    "least first, before any refit. Layers with low lines can be compressed at little distortion."
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
    depth_colors = colors_by_depth(layers["depth"])
    for panel, role in zip(axes, roles, strict=True):
        for layer, depth in layers.loc[layers["role"] == role, "depth"].items():
            curve = curves[curves["layer"] == layer]
            removed = 100 * curve["weights_pruned"] / curve["weights_pruned"].max()
            positive = curve["distortion"] > 0  # others have no logarithm
            panel.plot(removed[positive], curve["distortion"][positive], color=depth_colors.to_rgba(depth), label=layer)
        panel.set(title=role, yscale="log", xlim=(0, 100))
        panel.set_xticks([0, 50, 100])
        panel.tick_params(labelbottom=True)  # also above an empty place
    axes[0].set_ylim(bottom=max(axes[0].get_ylim()[0], lowest_shown(curves)))
    figure.supxlabel("share of the layer removed (%)", fontsize="medium")
    figure.supylabel(f"distortion ({unit})", fontsize="medium")
    depth_bar(figure, axes, depth_colors)
    return figure


def lowest_shown(curves: pd.DataFrame) -> float:
    """Lower limit of the distortion axis: far enough below the lowest curve's end to separate the lines."""
    highest = curves.groupby("layer")["distortion"].max()
    return float(highest[highest > 0].min() * 10.0**-DECADES_SHOWN)
