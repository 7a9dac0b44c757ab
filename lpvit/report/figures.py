"""Figures of one pruned model: curves, keep ratios, blocks, interactions, training. Frames in, matplotlib figures out.

Nothing is shown or kept open. R, C = rows and columns of a layer's grid of blocks.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lpvit.report.looks import BLACK, DARK, GREY, LIGHT, percent, shades, styled
from lpvit.report.tables import BUDGETS

KEPT = ListedColormap(["white", DARK])
GAP, LABEL = 0.09, 0.3  # between grids of blocks and for the name of one, in widths of the widest grid
DECADES_SHOWN = 3  # of the lowest curve; predicted curves may pass through zero, and what is far below says nothing


@styled
def plot_curves(curves: pd.DataFrame, costs: pd.DataFrame, unit: str) -> Figure:
    """Rate-distortion curves: one panel per role, one line per layer, coloured by depth.

    Args:
        curves: Schema ``CURVES``.
        costs: Schema ``COSTS``; gives roles and order of execution.
        unit: Of the distortion.
    """
    layers = place_layers(costs, curves["layer"].unique())
    roles = list(layers["role"].unique())
    figure, panels = _panels(len(roles), columns=4)
    depth_colors = _depth_colors(layers["depth"])
    for panel, role in zip(panels, roles, strict=True):
        for layer, depth in layers.loc[layers["role"] == role, "depth"].items():
            curve = curves[curves["layer"] == layer]
            positive = curve[curve["distortion"] > 0]  # the others have no logarithm
            panel.plot(100 * positive["sparsity"], positive["distortion"], color=depth_colors.to_rgba(depth))
        panel.set(title=role, yscale="log", xlim=(0, 100))
        panel.set_xticks([0, 50, 100])
        panel.tick_params(labelbottom=True)  # also above a place that stays empty
    panels[0].set_ylim(bottom=max(panels[0].get_ylim()[0], lowest_shown(curves)))
    figure.supxlabel("sparsity of the layer (%)", fontsize="medium")
    figure.supylabel(f"distortion ({unit})", fontsize="medium")
    bar = figure.colorbar(depth_colors, ax=panels, label="transformer block", aspect=30, pad=0.01)
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    bar.ax.minorticks_off()
    return figure


@styled
def plot_allocation(allocation: pd.DataFrame, costs: pd.DataFrame) -> Figure:
    """Keep ratio of every prunable layer: one panel per role, one bar per transformer block, against the mean over all.

    Args:
        allocation: Schema ``ALLOCATION``.
        costs: Schema ``COSTS``; gives roles and order of execution.
    """
    layers = place_layers(costs, allocation["layer"]).join(allocation.set_index("layer"))
    roles = list(layers.groupby("role", sort=False))
    figure, panels = _panels(len(roles), columns=4, height=2.3)
    mean = 100 * layers["blocks_kept"].sum() / layers["blocks"].sum()
    for panel, (role, of_role) in zip(panels, roles, strict=True):
        panel.bar(of_role["depth"], 100 * of_role["keep_ratio"], width=0.8, color=LIGHT)
        panel.axhline(mean, color=BLACK, linestyle="--", linewidth=1)
        panel.set(title=role, ylim=(0, 100))
        panel.grid(visible=False, axis="x")
        panel.tick_params(labelbottom=True)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, min_n_ticks=1))
    panels[0].yaxis.set_major_formatter(percent())
    figure.supxlabel("transformer block", fontsize="medium")
    figure.supylabel("blocks kept", fontsize="medium")
    figure.suptitle(f"{_budgets_met(allocation)}; all blocks (dashed): {mean:.1f} %", x=0.01, ha="left")
    return figure


@styled
def plot_interactions(interactions: pd.DataFrame, costs: pd.DataFrame) -> Figure:
    """Heat map of how much of their distortion pairs of layers share: 1 adds to it, 0 not, -1 takes away.

    Layers of which nothing is pruned have no distortion to share; they are left out and counted.

    Args:
        interactions: Schema ``INTERACTIONS``.
        costs: Schema ``COSTS``; gives roles and order of execution.
    """
    layers = place_layers(costs, interactions["layer"])
    table = interactions.pivot_table("distortion", index="layer", columns="other")
    distortion = table.loc[layers.index, layers.index].to_numpy()
    pruned = np.diag(distortion) > 0
    layers, distortion = layers[pruned], distortion[np.ix_(pruned, pruned)]
    norms = np.sqrt(np.diag(distortion))
    shared = distortion / np.outer(norms, norms)
    figure = Figure(figsize=(5.6, 4.6), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shared, cmap="RdBu_r", vmin=-1, vmax=1)
    names = layers["role"] + " " + layers["depth"].astype(str)
    shown = np.arange(0, len(names), -(-len(names) // 24))
    axes.set_xticks(shown, names.iloc[shown], rotation=90, fontsize="small")
    axes.set_yticks(shown, names.iloc[shown], fontsize="small")
    axes.grid(visible=False)
    whole = f"\n{np.sum(~pruned)} unpruned layers left out" if not pruned.all() else ""
    share = np.trace(distortion) / distortion.sum() if pruned.any() else np.nan
    axes.set_title(f"sum of the layers' own distortions: {share:.2f} of the model's{whole}")
    figure.colorbar(image, ax=axes, label="correlation of what two layers do to the logits")
    return figure


@styled
def plot_frontier(frontier: pd.DataFrame, allocation: pd.DataFrame) -> Figure:
    """What two budgets could be at equal distortion: one line per distortion, and the two budgets as asked and met.

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


@styled
def plot_blocks(keep_masks: Mapping[str, NDArray[np.bool_]], costs: pd.DataFrame) -> Figure:
    """Pictures of which blocks stay in the first, middle and last layer of each role, with the share that does.

    Args:
        keep_masks: Layer -> (R, C), True where the block is kept; output features are drawn down, input features
            across.
        costs: Schema ``COSTS``; gives roles and order of execution.
    """
    layers = place_layers(costs, keep_masks)
    shown = [_first_middle_last(of_role) for _, of_role in layers.groupby("role", sort=False)]
    columns = max(map(len, shown))
    widest = max(np.shape(keep_masks[layer])[1] for of_role in shown for layer in of_role.index)
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    bottom = 0.0
    for column in range(columns):
        names = [of_role.iloc[column] for of_role in shown if column < len(of_role)]
        grids = {f"{row['role']} {row['depth']}": np.asarray(keep_masks[str(row.name)]) for row in names}
        bottom = max(bottom, _draw_shelves(axes, grids, column * (1 + GAP) * widest, widest))
    width = (columns * (1 + GAP) - GAP) * widest
    axes.set(xlim=(-1, width + 1), ylim=(bottom, -GAP * widest), aspect="equal")
    axes.set_axis_off()
    figure.supxlabel(
        "one cell is one block, dark if it stays; output features run down, input features across", fontsize="small"
    )
    figure.set_size_inches(9, 9 * (bottom + GAP * widest) / width)
    return figure


@styled
def plot_history(history: pd.DataFrame, before: pd.DataFrame | None = None) -> Figure:
    """Loss, accuracy and learning rate of a training, by epoch.

    Args:
        history: Schema ``HISTORY``.
        before: Schema ``METRICS``: the model that the training began with, if it was evaluated; drawn at epoch 0.
    """
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    epochs = history["epoch"]
    marker = "." if len(history) <= 30 else ""
    loss.plot(epochs, history["train_loss"], "--", color=GREY, marker=marker, label="training")
    _draw_course(loss, epochs, history["validation_loss"], None if before is None else before["loss"].iloc[0])
    loss.set(title="loss (nat)")
    loss.legend()
    _draw_course(accuracy, epochs, history["top1"], None if before is None else before["top1"].iloc[0])
    accuracy.set(title="top-1 accuracy, validation")
    accuracy.yaxis.set_major_formatter(percent())
    if before is not None:
        accuracy.legend(loc="lower right")
    rate.plot(epochs, history["learning_rate"], color=BLACK, marker=marker)
    rate.set(title="learning rate", ylim=(0, None))
    for axes in (loss, accuracy, rate):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _draw_course(axes: Axes, epochs: pd.Series, values: pd.Series, before: float | None) -> None:
    marker = "." if len(epochs) <= 30 else ""
    axes.plot(epochs, values, color=BLACK, marker=marker, label="validation")
    if before is not None:
        axes.plot([0, epochs.iloc[0]], [before, values.iloc[0]], ":", color=BLACK)
        axes.plot(0, before, "D", color=BLACK, markerfacecolor="white", markersize=5, label="before training")


def lowest_shown(curves: pd.DataFrame) -> float:
    """Where an axis of distortions begins: so far below the lowest curve's end that the lines can be told apart."""
    highest = curves.groupby("layer")["distortion"].max()
    return float(highest[highest > 0].min() * 10.0**-DECADES_SHOWN)


def place_layers(costs: pd.DataFrame, layers: Iterable[str]) -> pd.DataFrame:
    """Role and depth of some layers, indexed by layer, in order of execution.

    Depth is the number of the transformer block, from 1; a layer outside of them has that of the last block before it,
    so 0 for a patch embedding.
    """
    block = costs["layer"].str.extract(r"^(.*\bblocks\.\d+)\.", expand=False)
    depth = (block.notna() & ~block.duplicated()).cumsum()
    placed = costs[["layer", "role"]].assign(depth=depth).set_index("layer")
    return placed[placed.index.isin(list(layers))]


def _panels(count: int, columns: int, height: float = 2.6) -> tuple[Figure, list[Axes]]:
    """A figure of small multiples with common axes, row by row."""
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.1 * columns + 1.2, height * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for unused in panels[count:]:
        unused.set_axis_off()
    return figure, panels[:count]


def _depth_colors(depth: pd.Series) -> ScalarMappable:
    edges = np.arange(depth.min(), depth.max() + 2) - 0.5
    return ScalarMappable(BoundaryNorm(edges, len(edges) - 1), ListedColormap(shades(len(edges) - 1)))


def _budgets_met(allocation: pd.DataFrame) -> str:
    """The one or two budgets, what was asked and what is reached."""
    row = allocation.iloc[0]
    met = [
        f"{BUDGETS[row[f'{prefix}budget']]}: {row[f'{prefix}achieved']:.2%} (target {row[f'{prefix}target']:.2%})"
        for prefix in ("", "second_")
        if pd.notna(row[f"{prefix}budget"])
    ]
    return ", ".join(met).replace("%", " %")


def _first_middle_last(layers: pd.DataFrame) -> pd.DataFrame:
    return layers.iloc[sorted({0, len(layers) // 2, len(layers) - 1})]


def _draw_shelves(axes: Axes, keep_masks: Mapping[str, NDArray[np.bool_]], left: float, widest: int) -> float:
    """Grids side by side while there is room, then below; all blocks at one scale. Returns where the last one ends."""
    x, top, bottom = 0.0, 0.0, 0.0
    for name, keep_mask in keep_masks.items():
        rows, columns = keep_mask.shape
        if x + columns > widest:
            x, top = 0.0, bottom
        at = left + x
        axes.imshow(
            keep_mask, cmap=KEPT, vmin=0, vmax=1, interpolation="nearest", extent=(at, at + columns, top + rows, top)
        )
        axes.add_patch(Rectangle((at, top), columns, rows, fill=False, edgecolor=GREY, clip_on=False))
        told = f"{name}: {100 * keep_mask.mean():.0f} %"
        axes.annotate(told, (at, top), (0, 3), textcoords="offset points", fontsize="small")
        x += max(columns, LABEL * widest) + GAP * widest / 3
        bottom = max(bottom, top + rows + GAP * widest)
    return bottom
