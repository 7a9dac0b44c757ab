"""Keep ratio of every layer."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lpvit.report.formats import BUDGETS
from lpvit.report.layers import panels, place_layers
from lpvit.report.style import BLACK, LIGHT, percent

TITLE = "Keep ratios"
CATEGORY = "Pruned models"
CAPTION = (
    "Share of its blocks that every layer keeps under the budget, in order of execution. The dashed line is the "
    "share over all layers together."
)


def draw(allocation: pd.DataFrame, costs: pd.DataFrame) -> Figure:
    """Keep ratio of every prunable layer: one panel per role, one bar per transformer block, against the mean over all.

    Args:
        allocation: Schema ``ALLOCATION``.
        costs: Schema ``COSTS``; gives roles and order of execution.
    """
    layers = place_layers(costs, allocation["layer"]).join(allocation.set_index("layer"))
    roles = list(layers.groupby("role", sort=False))
    figure, axes = panels(len(roles), columns=4, height=2.3)
    mean = 100 * layers["blocks_kept"].sum() / layers["blocks"].sum()
    for panel, (role, of_role) in zip(axes, roles, strict=True):
        panel.bar(of_role["depth"], 100 * of_role["keep_ratio"], width=0.8, color=LIGHT, label=_counts(of_role))
        panel.axhline(mean, color=BLACK, linestyle="--", linewidth=1, label="all blocks")
        panel.set(title=role, ylim=(0, 100))
        panel.grid(visible=False, axis="x")
        panel.tick_params(labelbottom=True)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, min_n_ticks=1))
    axes[0].yaxis.set_major_formatter(percent())
    figure.supxlabel("transformer block", fontsize="medium")
    figure.supylabel("blocks kept", fontsize="medium")
    figure.suptitle(f"{_budgets_met(allocation)}; all blocks (dashed): {mean:.1f} %", x=0.01, ha="left")
    return figure


def _counts(layers: pd.DataFrame) -> list[str]:
    counts = zip(layers.index, layers["blocks_kept"], layers["blocks"], strict=True)
    return [f"{layer}: {kept} of {blocks} blocks" for layer, kept, blocks in counts]


def _budgets_met(allocation: pd.DataFrame) -> str:
    """The one or two budgets, requested and reached."""
    row = allocation.iloc[0]
    met = [
        f"{BUDGETS[row[f'{prefix}budget']]}: {row[f'{prefix}achieved']:.2%} (target {row[f'{prefix}target']:.2%})"
        for prefix in ("", "second_")
        if pd.notna(row[f"{prefix}budget"])
    ]
    return ", ".join(met).replace("%", " %")
