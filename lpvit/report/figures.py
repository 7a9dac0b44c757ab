"""Tables and figures that people read. Frames in, frames or matplotlib figures out; nothing is shown or kept open.

R, C = rows and columns of a layer's grid of blocks.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray

from lpvit.report.tables import _BUDGETS
from lpvit.store.artifacts import replace_atomically

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
}


DOTS_PER_INCH = 150


# Okabe and Ito's palette, which people with any form of colour blindness can tell apart.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")


MARKERS = ("o", "s", "^", "D", "v", "P")


GREY = "0.45"


POINTS_APART = 9  # between experiments that would hide each other


WIDEST_CROWD = 36  # points; more of them than fit stand closer


LEGEND_ROWS = 14


DECADES_SHOWN = 3  # of the lowest curve; predicted curves may pass through zero, and what is far below says nothing


styled = matplotlib.rc_context(STYLE)


@styled
def plot_curves(curves: pd.DataFrame, costs: pd.DataFrame) -> Figure:
    """Rate-distortion curves: one panel per role, one line per layer, coloured by depth.

    Args:
        curves: Schema ``CURVES``.
        costs: Schema ``COSTS``; gives roles and order of execution.
    """
    layers = _place_layers(costs, curves["layer"].unique())
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
    highest = curves.groupby("layer")["distortion"].max()
    panels[0].set_ylim(bottom=max(panels[0].get_ylim()[0], highest[highest > 0].min() * 10.0**-DECADES_SHOWN))
    figure.supxlabel("sparsity of the layer (%)", fontsize="medium")
    figure.supylabel("distortion (logit² per image)", fontsize="medium")
    bar = figure.colorbar(depth_colors, ax=panels, label="transformer block", aspect=30, pad=0.01)
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    bar.ax.minorticks_off()
    return figure


@styled
def plot_allocation(allocation: pd.DataFrame, costs: pd.DataFrame) -> Figure:
    """Keep ratio of every prunable layer, in order of execution, against the mean over all.

    Args:
        allocation: Schema ``ALLOCATION``.
        costs: Schema ``COSTS``; gives roles and order of execution.
    """
    layers = _place_layers(costs, allocation["layer"]).join(allocation.set_index("layer"))
    figure = Figure(figsize=(9, 2.9), layout="constrained")
    axes = figure.add_subplot()
    layers["position"] = np.arange(len(layers)) + 1.2 * (layers["depth"] - layers["depth"].iloc[0])
    for color, (role, of_role) in zip(cycle(COLORS), layers.groupby("role", sort=False), strict=False):
        axes.bar(of_role["position"], 100 * of_role["keep_ratio"], width=0.9, color=color, label=role)
    mean = 100 * layers["blocks_kept"].sum() / layers["blocks"].sum()
    axes.axhline(mean, color="black", linestyle="--", linewidth=1, label=f"all blocks: {mean:.1f} %")

    centres = layers.groupby("depth")["position"].mean()
    shown = centres[:: -(-len(centres) // 24)]
    axes.set_xticks(shown.to_numpy(), shown.index.astype(str))
    axes.grid(visible=False, axis="x")
    axes.set(xlabel="transformer block", ylabel="blocks kept", ylim=(0, 100))
    axes.margins(x=0.01)
    axes.yaxis.set_major_formatter(percent())
    axes.set_title(_budgets_met(allocation))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@styled
def plot_interactions(interactions: pd.DataFrame, costs: pd.DataFrame) -> Figure:
    """Heat map of how much of their distortion pairs of layers share: 1 adds to it, 0 not, -1 takes away.

    Args:
        interactions: Schema ``INTERACTIONS``.
        costs: Schema ``COSTS``; gives roles and order of execution.
    """
    layers = _place_layers(costs, interactions["layer"])
    table = interactions.pivot_table("distortion", index="layer", columns="other")
    pairs = table.loc[layers.index, layers.index]
    distortion = pairs.to_numpy()
    norms = np.sqrt(np.outer(np.diag(distortion), np.diag(distortion)))
    shared = np.divide(distortion, norms, out=np.zeros_like(norms), where=norms > 0)
    figure = Figure(figsize=(5.6, 4.6), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shared, cmap="RdBu_r", vmin=-1, vmax=1)
    names = layers["role"] + " " + layers["depth"].astype(str)
    shown = np.arange(0, len(names), -(-len(names) // 24))
    axes.set_xticks(shown, names.iloc[shown], rotation=90, fontsize="small")
    axes.set_yticks(shown, names.iloc[shown], fontsize="small")
    axes.grid(visible=False)
    axes.set_title(f"sum of the layers' own distortions: {np.trace(distortion) / distortion.sum():.2f} of the model's")
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
    for color, (level, line) in zip(cycle(COLORS), frontier.groupby("level"), strict=False):
        axes.plot(100 * line["first"], 100 * line["second"], color=color, marker=".", label=f"{level:g} x distortion")
    axes.axvline(100 * row["target"], color=GREY, linestyle="--", linewidth=1, label="budgets")
    axes.axhline(100 * row["second_target"], color=GREY, linestyle="--", linewidth=1)
    axes.plot(100 * row["achieved"], 100 * row["second_achieved"], "*", color="black", markersize=10, label="met")
    axes.set(xlabel=_BUDGETS[row["budget"]], ylabel=_BUDGETS[row["second_budget"]])
    axes.xaxis.set_major_formatter(percent())
    axes.yaxis.set_major_formatter(percent())
    figure.legend(loc="outside right center")
    return figure


@styled
def plot_blocks(keep_masks: Mapping[str, NDArray[np.bool_]], costs: pd.DataFrame) -> Figure:
    """Pictures of which blocks stay in the first, middle and last layer of each role.

    Args:
        keep_masks: Layer -> (R, C), True where the block stays. The longer side is drawn across.
        costs: Schema ``COSTS``; gives roles and order of execution.
    """
    layers = _place_layers(costs, keep_masks)
    shown = [_first_middle_last(of_role) for _, of_role in layers.groupby("role", sort=False)]
    figure = Figure(figsize=(9, 1.15 * len(shown) + 0.2), layout="constrained")
    grid = figure.subplots(len(shown), max(map(len, shown)), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, of_role in zip(grid, shown, strict=True):
        for axes, (layer, role, depth) in zip(row, of_role.itertuples(), strict=False):
            _draw_keep_mask(axes, np.asarray(keep_masks[layer]), f"{role}, transformer block {depth}")
    return figure


@styled
def plot_tradeoff(table: pd.DataFrame) -> Figure:
    """Top-1 accuracy against MACs: dense as stars, pruned hollow, fine-tuned filled, quantised small.

    Args:
        table: From `summary`.
    """
    datasets = list(table["dataset"].unique())
    figure = Figure(figsize=(4.2 * len(datasets) + 2, 3.6), layout="constrained")
    panels = figure.subplots(1, len(datasets), squeeze=False)[0]
    experiments = [name for name in table["experiment"].unique() if name]
    looks = {name: (COLORS[i % 8], MARKERS[i // 8 % 6]) for i, name in enumerate(experiments)}
    for axes, dataset in zip(panels, datasets, strict=True):
        of_dataset = table[table["dataset"] == dataset]
        for name, shift in _shifts(of_dataset).items():
            _draw_experiment(axes, of_dataset[of_dataset["experiment"] == name], *looks[name], shift)
        _draw_dense(axes, of_dataset[of_dataset["stage"] == "dense"])
        axes.set(title=dataset, xlabel="MACs in linear layers per image", xlim=(0, None))
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.yaxis.set_major_formatter(percent())
        axes.margins(y=0.12)
    panels[0].set_ylabel("top-1 accuracy")
    handles = list(_tradeoff_legend(looks, bool(table["stage"].str.endswith("quantised").any())))
    figure.legend(handles=handles, loc="outside right center", ncols=-(-len(handles) // LEGEND_ROWS))
    return figure


@styled
def plot_history(history: pd.DataFrame) -> Figure:
    """Loss, accuracy and learning rate of a training, by epoch.

    Args:
        history: Schema ``HISTORY``.
    """
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    epochs = history["epoch"]
    marker = "." if len(history) <= 30 else ""
    loss.plot(epochs, history["train_loss"], color=COLORS[1], marker=marker, label="training")
    loss.plot(epochs, history["validation_loss"], color=COLORS[0], marker=marker, label="validation")
    loss.set(title="loss (nat)")
    loss.legend()
    accuracy.plot(epochs, history["top1"], color=COLORS[0], marker=marker)
    accuracy.set(title="top-1 accuracy, validation")
    accuracy.yaxis.set_major_formatter(percent())
    rate.plot(epochs, history["learning_rate"], color=GREY, marker=marker)
    rate.set(title="learning rate", ylim=(0, None))
    for axes in (loss, accuracy, rate):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


@styled
def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a figure as PNG, whole or not at all.

    Raises:
        LpvitError: The disk is full or the folder cannot be written.
    """
    with replace_atomically(path) as partial:
        figure.savefig(partial, format="png", dpi=DOTS_PER_INCH)


def _place_layers(costs: pd.DataFrame, layers: Iterable[str]) -> pd.DataFrame:
    """Role and depth of some layers, indexed by layer, in order of execution.

    Depth is the number of the transformer block, from 1; a layer outside of them has that of the last block before it,
    so 0 for a patch embedding.
    """
    block = costs["layer"].str.extract(r"^(.*\bblocks\.\d+)\.", expand=False)
    depth = (block.notna() & ~block.duplicated()).cumsum()
    placed = costs[["layer", "role"]].assign(depth=depth).set_index("layer")
    return placed[placed.index.isin(list(layers))]


def _panels(count: int, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure of small multiples with common axes, row by row."""
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.1 * columns + 1.2, 2.6 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for unused in panels[count:]:
        unused.set_axis_off()
    return figure, panels[:count]


def _depth_colors(depth: pd.Series) -> ScalarMappable:
    edges = np.arange(depth.min(), depth.max() + 2) - 0.5
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(edges) - 1))  # its end is too light for lines
    return ScalarMappable(BoundaryNorm(edges, len(edges) - 1), ListedColormap(shades))


def _budgets_met(allocation: pd.DataFrame) -> str:
    """The one or two budgets, what was asked and what is reached."""
    row = allocation.iloc[0]
    met = [
        f"{_BUDGETS[row[f'{prefix}budget']]}: {row[f'{prefix}achieved']:.2%} (target {row[f'{prefix}target']:.2%})"
        for prefix in ("", "second_")
        if pd.notna(row[f"{prefix}budget"])
    ]
    return ", ".join(met).replace("%", " %")


def percent() -> PercentFormatter:
    return PercentFormatter(symbol=" %")


def _first_middle_last(layers: pd.DataFrame) -> pd.DataFrame:
    return layers.iloc[sorted({0, len(layers) // 2, len(layers) - 1})]


def _draw_keep_mask(axes: Axes, keep_mask: NDArray[np.bool_], name: str) -> None:
    sides = ("out", "in")
    if keep_mask.shape[0] > keep_mask.shape[1]:
        keep_mask, sides = keep_mask.T, ("in", "out")
    axes.set_axis_on()
    axes.imshow(keep_mask, cmap=ListedColormap(["white", COLORS[0]]), vmin=0, vmax=1)
    axes.spines[:].set(visible=True, color="0.7")
    axes.set(xticks=[], yticks=[], title=f"{name}: {100 * keep_mask.mean():.0f} % kept", anchor="W")
    axes.set_xlabel(sides[1], fontsize="small", labelpad=2, color=GREY)
    axes.set_ylabel(sides[0], fontsize="small", labelpad=2, color=GREY)


def _shifts(table: pd.DataFrame) -> dict[str, float]:
    """Points by which to shift each experiment sideways, so that those with the same MACs stand side by side."""
    macs = table[table["stage"] == "pruned"].set_index("experiment")["macs"]
    crowds = (50 * macs / table["macs"].max()).round()
    rank, size = crowds.groupby(crowds).cumcount(), crowds.groupby(crowds).transform("size")
    apart = np.minimum(POINTS_APART, WIDEST_CROWD / size)
    return {str(name): float(shift) for name, shift in (apart * (rank - (size - 1) / 2)).items()}


def _draw_experiment(axes: Axes, stages: pd.DataFrame, color: str, marker: str, shift: float) -> None:
    place = axes.transData + ScaledTranslation(shift / 72, 0, axes.figure.dpi_scale_trans)
    points = dict(zip(stages["stage"], stages[["macs", "top1"]].to_numpy(), strict=True))
    for stage, point in points.items():
        fill, size = color if stage.startswith("finetuned") else "white", 3 if stage.endswith("quantised") else 6
        axes.plot(
            point[:1], point[1:], marker, color=color, markerfacecolor=fill, markersize=size, transform=place, zorder=3
        )
    if "finetuned" in points:
        arrow = {"arrowstyle": "->", "color": color, "shrinkA": 4, "shrinkB": 4}
        axes.annotate("", points["finetuned"], points["pruned"], place, place, arrowprops=arrow)
    axes.update_datalim(stages[["macs", "top1"]].to_numpy())  # a shifted artist does not count by itself


def _draw_dense(axes: Axes, dense: pd.DataFrame) -> None:
    axes.plot(dense["macs"], dense["top1"], "*", color="black", markersize=10, zorder=3)
    for row in dense.itertuples():
        axes.annotate(str(row.model), (row.macs, row.top1), (0, 7), textcoords="offset points", ha="right")


def _tradeoff_legend(looks: Mapping[str, tuple[str, str]], quantised: bool) -> Iterator[Line2D]:
    yield Line2D([], [], color="black", marker="*", markersize=10, linestyle="", label="dense")
    yield Line2D([], [], color=GREY, marker="o", markerfacecolor="white", linestyle="", label="pruned")
    yield Line2D([], [], color=GREY, marker="o", linestyle="", label="fine-tuned")
    if quantised:
        yield Line2D([], [], color=GREY, marker="o", markersize=3, linestyle="", label="the same, quantised")
    for name, (color, marker) in looks.items():
        yield Line2D([], [], color=color, marker=marker, linestyle="", label=name)
