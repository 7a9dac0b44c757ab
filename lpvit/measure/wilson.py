"""Wilson's score interval of an accuracy. NumPy only."""

from typing import TypeVar

import numpy as np
import pandas as pd

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
