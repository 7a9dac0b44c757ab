"""Share of every layer that is kept."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lpvit.report.formats import BUDGETS
from lpvit.report.layers import kept_units, panels, place_layers
from lpvit.report.style import BLACK, LIGHT, percent

TITLE = "Keep ratios"
CATEGORY = "Pruned models"
CAPTION = (
    "Share of its multiply-adds that every layer keeps under the budget, by its {units}; transformer blocks are "
    "counted from 0. The dashed line is the share over all these layers together."
)


def draw(allocation: pd.DataFrame, costs: pd.DataFrame, rank_multiple: int | None = None) -> Figure:
    """Share kept of every prunable layer: a panel per role, a bar per transformer block, against the share of all.

    Args:
        allocation: Schema ``ALLOCATION``.
        costs: Schema ``COSTS``; gives roles and order of execution.
        rank_multiple: Of layers that are kept by ranks; None for blocks.
    """
    layers = place_layers(costs, allocation["layer"]).join(allocation.set_index("layer"))
    roles = list(layers.groupby("role", sort=False))
    figure, axes = panels(len(roles), columns=4, height=2.3)
    mean = 100 * layers["macs_kept"].sum() / layers["macs_dense"].sum()
    names = allocation.set_index("layer").apply(lambda row: kept_units(row, rank_multiple), axis=1)
    for panel, (role, of_role) in zip(axes, roles, strict=True):
        shares = 100 * of_role["macs_kept"] / of_role["macs_dense"]
        told = [f"{layer}: {names[layer]}" for layer in of_role.index]
        panel.bar(of_role["depth"], shares, width=0.8, color=LIGHT, label=told)
        panel.axhline(mean, color=BLACK, linestyle="--", linewidth=1, label="all layers")
        panel.set(title=role, ylim=(0, 100))
        panel.grid(visible=False, axis="x")
        panel.tick_params(labelbottom=True)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, min_n_ticks=1))
    axes[0].yaxis.set_major_formatter(percent())
    figure.supxlabel("transformer block", fontsize="medium")
    figure.supylabel("multiply-adds kept", fontsize="medium")
    figure.suptitle(f"{_budgets_met(allocation)}; these layers (dashed): {mean:.1f} %", x=0.01, ha="left")
    return figure


def _budgets_met(allocation: pd.DataFrame) -> str:
    """The one or two budgets, requested and reached."""
    row = allocation.iloc[0]
    met = [
        f"{BUDGETS[row[f'{prefix}budget']]}: {row[f'{prefix}achieved']:.2%} (target {row[f'{prefix}target']:.2%})"
        for prefix in ("", "second_")
        if pd.notna(row[f"{prefix}budget"])
    ]
    return ", ".join(met).replace("%", " %")
