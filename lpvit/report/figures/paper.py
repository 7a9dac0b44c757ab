"""The rows of the paper's tables and our results."""

import pandas as pd
from matplotlib.figure import Figure

from lpvit.report.style import BLACK, GREY, percent

TITLE = "The paper's rows"
CATEGORY = "Results"
CAPTION = "The rows of the LPViT paper and our results, with the dense accuracy of the same checkpoint."


def draw(paper: pd.DataFrame, proxy: bool) -> Figure:
    """Accuracy of every row: the dense model as a line, published as a hollow mark, ours filled with its 95 % interval.

    Args:
        paper: From `lpvit.report.tables.paper.paper_table`.
        proxy: Small models replace those of the rows: published values are omitted.
    """
    figure = Figure(figsize=(8, 0.32 * len(paper) + 1.2), layout="constrained")
    axes = figure.subplots()
    places = range(len(paper))
    axes.scatter(paper["dense_top1"], places, marker="|", s=120, color=GREY, label="dense, ours")
    if not proxy:
        axes.scatter(
            paper["published_top1"], places, facecolors="none", edgecolors=BLACK, s=70, zorder=4, label="published"
        )
    reach = [paper["top1"] - paper["top1_low"], paper["top1_high"] - paper["top1"]]
    axes.errorbar(paper["top1"], places, xerr=reach, fmt="o", color=BLACK, elinewidth=1, capsize=2, label="ours")
    axes.set_yticks(places, paper["experiment"].to_list())
    axes.invert_yaxis()
    axes.set(xlabel="top-1 accuracy", title="A proxy: small models on small images" if proxy else "")
    axes.xaxis.set_major_formatter(percent())
    figure.legend(loc="outside lower center", ncols=3)
    return figure
