"""Helpers of figures of layers: their order, their colours, and small multiples with an axis for each role."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lpvit.report.style import shades


def place_layers(costs: pd.DataFrame, layers: Iterable[str]) -> pd.DataFrame:
    """Role, depth and label of some layers, indexed by layer, in order of execution.

    Depth is the number of the transformer block, from 0 and on through the stages of a Swin; other layers have that of
    the last transformer block before them, or 0. The label has the numbers of the layer's name: ``qkv 3`` for
    ``blocks.3.attn.qkv``, ``fc1 2.0`` for ``layers.2.blocks.0.mlp.fc1``.
    """
    block = costs["layer"].str.extract(r"^(.*\bblocks\.\d+)\.", expand=False)
    depth = ((block.notna() & ~block.duplicated()).cumsum() - 1).clip(lower=0)
    numbers = block.fillna("").str.findall(r"\d+").str.join(".")
    label = (costs["role"] + " " + numbers).str.rstrip()
    placed = costs[["layer", "role"]].assign(depth=depth, label=label).set_index("layer")
    return placed[placed.index.isin(list(layers))]


def panels(count: int, columns: int, height: float = 2.6) -> tuple[Figure, list[Axes]]:
    """A figure of small multiples with common axes, row by row."""
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.1 * columns + 1.2, height * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for unused in panels[count:]:
        unused.set_axis_off()
    return figure, panels[:count]


def colors_by_depth(depth: pd.Series) -> ScalarMappable:
    """A colour for each transformer block, from dark (first) to light (last)."""
    edges = np.arange(depth.min(), depth.max() + 2) - 0.5
    return ScalarMappable(BoundaryNorm(edges, len(edges) - 1), ListedColormap(shades(len(edges) - 1)))


def depth_bar(figure: Figure, axes: Sequence[Axes], colors: ScalarMappable) -> None:
    """The colour bar of `colors_by_depth`."""
    bar = figure.colorbar(colors, ax=axes, label="transformer block", aspect=30, pad=0.01)
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    bar.ax.minorticks_off()


def kept_units(row: Mapping[Any, Any] | pd.Series, rank_multiple: int | None) -> str:
    """What a layer keeps: ``12 of 96 blocks``, ``rank 24`` or ``dense``.

    Args:
        row: Of schema ``ALLOCATION``.
        rank_multiple: Of layers that are kept by ranks; None for blocks, 0 where layers differ in that.
    """
    if rank_multiple == 0:
        return f"{row['macs_kept'] / row['macs_dense']:.0%} of its multiply-adds"
    if rank_multiple is None:
        return f"{row['blocks_kept']} of {row['blocks']} blocks"
    return "dense" if row["blocks_kept"] == row["blocks"] else f"rank {rank_multiple * row['blocks_kept']}"
