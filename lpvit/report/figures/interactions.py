"""Additivity of the layers' distortions."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lpvit.report.layers import place_layers

TITLE = "Interactions of layers"
CATEGORY = "Pruned models"
CAPTION = (
    "Correlation of the logit changes by pruning two layers (blue: they cancel, red: together they exceed their "
    "sum), to first order in the weights and before any reconstruction. Layers without pruned blocks are omitted. "
    "The allocation adds up the layers' own distortions, as if the layers did not interact (white off the diagonal); "
    "the title compares this sum with the distortion of the whole model, blue and red cells included."
)


def draw(interactions: pd.DataFrame, costs: pd.DataFrame) -> Figure:
    """Heat map of the correlation of the logit changes of pairs of layers, -1 to 1.

    Layers without pruned blocks are omitted and counted.

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
    names = layers["label"]
    shown = np.arange(0, len(names), -(-len(names) // 24))
    axes.set_xticks(shown, names.iloc[shown], rotation=90, fontsize="small")
    axes.set_yticks(shown, names.iloc[shown], fontsize="small")
    axes.grid(visible=False)
    whole = f"\n{np.sum(~pruned)} unpruned layers omitted" if not pruned.all() else ""
    share = np.trace(distortion) / distortion.sum() if pruned.any() else np.nan
    axes.set_title(f"sum of the layers' own distortions: {share:.2f} times the model's{whole}")
    figure.colorbar(image, ax=axes, label="correlation of the logit changes of two layers")
    return figure
