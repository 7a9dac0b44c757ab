"""What models are compared by: accuracy, or what stands for it where images have no classes. Frames in, frames out."""

from typing import NamedTuple

import pandas as pd

from lpvit.measure.intervals import wilson


class Measure(NamedTuple):
    """A measure in tables (``heading``) and figures (``title``), and the column of its number of images."""

    heading: str
    title: str
    images: str | None = "images"


MEASURES = {  # column of the summary, the first that all models of a dense one have
    "top1": Measure("top-1", "top-1 accuracy"),
    "linear": Measure("linear probe", "accuracy of a linear probe", "probe_images"),
    "same_class": Measure("same class", "images of the same class as dense"),
    "cosine": Measure("cosine", "cosine with the outputs of dense", None),
}


def with_measure(table: pd.DataFrame) -> pd.DataFrame:
    """A table in which ``top1`` and its interval hold what stands for accuracy, and ``measure`` says what that is.

    Args:
        table: ``dataset``, ``model``, ``images``, ``top1`` with ``top1_low`` and ``top1_high``, in %; of images without
            classes, which have no ``top1``, further columns of schema ``METRICS``.

    Returns:
        A copy; a cosine is in % as well, without an interval.
    """
    table = table.assign(measure="top1")
    for _, rows in table[table["top1"].isna()].groupby(["dataset", "model"]):
        name = next(name for name in MEASURES if rows[name].notna().all())
        images = MEASURES[name].images
        shares = rows[name].astype(float) * (1 if images else 100)
        filled = {"measure": name, "top1": shares}
        if images:
            filled["top1_low"], filled["top1_high"] = wilson(shares, rows[images].astype(float))
        table.update(pd.DataFrame(filled, rows.index))
    return table
