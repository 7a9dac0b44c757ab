"""Helpers of figures of layers: their order, and small multiples with an axis for each role."""

from collections.abc import Iterable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def place_layers(costs: pd.DataFrame, layers: Iterable[str]) -> pd.DataFrame:
    """Role and depth of some layers, indexed by layer, in order of execution.

    Depth is the number of the transformer block, from 1; other layers have that of the last transformer
    block before them, so 0 for a patch embedding.
    """
    block = costs["layer"].str.extract(r"^(.*\bblocks\.\d+)\.", expand=False)
    depth = (block.notna() & ~block.duplicated()).cumsum()
    placed = costs[["layer", "role"]].assign(depth=depth).set_index("layer")
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
