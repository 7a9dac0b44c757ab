"""95 % intervals of accuracies and of their differences. NumPy and pandas only.

n = images.
"""

import math
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Numbers = TypeVar("Numbers", float, pd.Series)


def wilson(accuracy: Numbers, images: Numbers, z: float = 1.96) -> tuple[Numbers, Numbers]:
    """Wilson's score interval of an accuracy; valid also for few images and near 100 %.

    Args:
        accuracy: In %.
        images: Number of images.
        z: Quantile of the normal distribution; 1.96 gives 95 %.

    Returns:
        Lower and upper ends, in %.
    """
    share, z2 = accuracy / 100, z**2 / images
    centre = (share + z2 / 2) / (1 + z2)
    half = np.sqrt(z2 * (share * (1 - share) + z2 / 4)) / (1 + z2)
    return 100 * (centre - half), 100 * (centre + half)


def paired(before: NDArray[Any] | pd.Series, after: NDArray[Any] | pd.Series) -> tuple[float, float, float]:
    """Difference of two accuracies on the same images, with its 95 % interval, in points.

    Agresti and Min (Simple improved confidence intervals for comparing matched proportions, 2005): the Wald interval
    after adding half an image to each of the four cells, so that it is not empty where the models agree.

    Args:
        before: Whether each image was right, (n,), bool.
        after: Likewise, of the other model.
    """
    gained, lost, n = int((~before & after).sum()), int((before & ~after).sum()), len(before)
    b, c, m = gained + 0.5, lost + 0.5, n + 2
    half = 1.96 * math.sqrt(b + c - (b - c) ** 2 / m) / m
    return 100 * (gained - lost) / n, 100 * ((b - c) / m - half), 100 * ((b - c) / m + half)
