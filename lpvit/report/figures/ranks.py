"""Spectra of all layers in the metric of the logits, with the ranks that were chosen."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lpvit.report.layers import colors_by_depth, depth_bar, panels, place_layers
from lpvit.report.style import BLACK

TITLE = "Spectra and ranks"
CATEGORY = "Pruned models"
CAPTION = (
    "One line per layer: distortion that is left out when the layer keeps this rank, as a share of that without the "
    "layer's products; before any refit. A mark is the rank that the budget gives the layer; layers that stay dense "
    "have none and are counted in the title."
)
LOWEST = 1e-6  # share; smaller ones are rounding errors


def draw(allocation: pd.DataFrame, curves: pd.DataFrame, costs: pd.DataFrame, rank_multiple: int) -> Figure:
    """Relative distortion by rank: a panel per role, a line per layer, coloured by depth, a mark at the chosen rank.

    Args:
        allocation: Schema ``ALLOCATION``, of low-rank factors.
        curves: Schema ``CURVES``, of the same pruning.
        costs: Schema ``COSTS``; gives roles and order of execution.
        rank_multiple: Of the ranks.
    """
    layers = place_layers(costs, allocation["layer"]).join(allocation.set_index("layer"))
    roles = list(layers.groupby("role", sort=False))
    figure, axes = panels(len(roles), columns=4)
    colors = colors_by_depth(layers["depth"])
    for panel, (role, of_role) in zip(axes, roles, strict=True):
        for layer, row in of_role.iterrows():
            left_out = _left_out(curves[curves["layer"] == layer], rank_multiple)
            color = colors.to_rgba(row["depth"])
            panel.plot(left_out.index, left_out, color=color, label=layer)
            chosen = rank_multiple * row["blocks_kept"]
            if row["blocks_kept"] < row["blocks"] and chosen in left_out.index:
                label = f"{layer}, rank {chosen}"
                panel.plot(chosen, left_out[chosen], "o", color=color, markeredgecolor=BLACK, zorder=3, label=label)
        dense = int((of_role["blocks_kept"] == of_role["blocks"]).sum())
        panel.set(title=f"{role}, {dense} dense" if dense else role, yscale="log", xlim=(0, None))
        panel.tick_params(labelbottom=True)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    figure.supxlabel("rank", fontsize="medium")
    figure.supylabel("share of the distortion left out", fontsize="medium")
    depth_bar(figure, axes, colors)
    return figure


def _left_out(curve: pd.DataFrame, rank_multiple: int) -> pd.Series:
    """Rank -> share of the distortion of rank 0; without dense, which leaves out nothing."""
    factors = curve[curve["blocks_pruned"] > 0]
    ranks = rank_multiple * (factors["blocks_pruned"].max() - factors["blocks_pruned"])
    share = pd.Series((factors["distortion"] / factors["distortion"].max()).to_numpy(), ranks)
    return share[share > LOWEST].sort_index()
