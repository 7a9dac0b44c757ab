"""Kept blocks."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from lpvit.report.layers import place_layers
from lpvit.report.style import DARK, GREY

TITLE = "Block patterns"
CATEGORY = "Pruned models"
CAPTION = (
    "Kept blocks (dark) and pruned blocks (white) in the first, the middle and the last layer of "
    "each role. One cell is one block of the weight matrix; output features run down, input features across, and "
    "all layers are drawn at one scale."
)
KEPT = ListedColormap(["white", DARK])
GAP, LABEL = 0.09, 0.3  # between grids of blocks and for the name of one, in widths of the widest grid


def draw(masks: Mapping[str, NDArray[np.bool_]], costs: pd.DataFrame) -> Figure:
    """Kept blocks in the first, middle and last layer of each role, with their share.

    Args:
        masks: Layer -> (R, C), True where the block is kept; output features are drawn down, input features across.
        costs: Schema ``COSTS``; gives roles and order of execution.
    """
    layers = place_layers(costs, masks)
    shown = [_first_middle_last(of_role) for _, of_role in layers.groupby("role", sort=False)]
    columns = max(map(len, shown))
    widest = max(np.shape(masks[layer])[1] for of_role in shown for layer in of_role.index)
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    bottom = 0.0
    for column in range(columns):
        names = [of_role.iloc[column] for of_role in shown if column < len(of_role)]
        grids = {str(row["label"]): np.asarray(masks[str(row.name)]) for row in names}
        bottom = max(bottom, _draw_shelves(axes, grids, column * (1 + GAP) * widest, widest))
    width = (columns * (1 + GAP) - GAP) * widest
    axes.set(xlim=(-1, width + 1), ylim=(bottom, -GAP * widest), aspect="equal")
    axes.set_axis_off()
    figure.supxlabel(
        "one cell is one block, dark if kept; output features run down, input features across", fontsize="small"
    )
    figure.set_size_inches(9, 9 * (bottom + GAP * widest) / width)
    return figure


def _first_middle_last(layers: pd.DataFrame) -> pd.DataFrame:
    return layers.iloc[sorted({0, len(layers) // 2, len(layers) - 1})]


def _draw_shelves(axes: Axes, keep_masks: Mapping[str, NDArray[np.bool_]], left: float, widest: int) -> float:
    """Grids in rows, all blocks at one scale. Returns the end of the last row."""
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
