"""Speed-up of layers against their sparsity."""

from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lpvit.report.style import GREY, percent, shades
from lpvit.report.tables.speed import break_even

TITLE = "Speed-up against sparsity"
CATEGORY = "Speed"
CAPTION = (
    "Speed-up of a model's linear layers, at equal sparsity, over dense ones, against the share of the weights "
    "pruned, as measured with random blocks. The mark is the sparsity from which on block-sparse layers are faster; "
    "below it layers stay dense."
)
LINES = ("-", "--", "-.", ":")


def draw(speed_up: pd.DataFrame) -> Figure:
    """Speed-up against sparsity: a panel per model, a line per block shape, with a mark at its break-even.

    Args:
        speed_up: From `speed_up_by_sparsity`, with the columns ``dataset`` and ``model``.
    """
    models = list(speed_up.groupby(["dataset", "model"], sort=False))
    blocks = list(speed_up["block"].unique())
    lines = dict(zip(blocks, zip(shades(len(blocks)), cycle(LINES), strict=False), strict=False))
    figure = Figure(figsize=(4.2 * len(models), 3.6), layout="constrained")
    panels = figure.subplots(1, len(models), squeeze=False, sharey=True)[0]
    for axes, ((dataset, model), of_model) in zip(panels, models, strict=True):
        for block, curve in of_model.groupby("block", sort=False):
            at = break_even(curve)
            always = bool(at == curve["sparsity"].iloc[0])
            told = "none" if np.isnan(at) else f"{'≤ ' * always}{100 * at:.0f} %"
            color, line = lines[block]
            axes.plot(100 * curve["sparsity"], curve["speed_up"], line, color=color, label=f"{block}: {told}")
            if not always:
                axes.plot(100 * at, 1, "o", color=color, zorder=3)
        axes.axhline(1, color=GREY, linestyle="--", linewidth=1)
        axes.set(title=f"{dataset}, {model}", xlabel="sparsity of the layers", xlim=(0, 100), ylim=(0, None))
        axes.xaxis.set_major_formatter(percent())
        axes.legend(loc="lower right", title="blocks, break-even")
    panels[0].set_ylabel("speed-up over dense layers")
    return figure
