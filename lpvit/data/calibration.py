"""Sampling of the calibration images."""

import logging

import numpy as np
import pandas as pd

from lpvit.data.index import usable_images
from lpvit.errors import LpvitError

_logger = logging.getLogger(__name__)


def sample_calibration(images: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """Draws usable training images without replacement, balanced over the classes.

    The counts of two classes differ by at most one; the seed chooses which classes get one more. A class with fewer
    images than its share contributes all of them, and the others share the rest evenly. The sample depends only on the
    paths, labels and seed, not on the order of the rows or the machine.

    Args:
        images: Schema ``IMAGES``.
        count: Images to draw.
        seed: Of the random sample.

    Returns:
        Schema ``SAMPLES``, the classes mixed.

    Raises:
        LpvitError: More images are asked for than there are.
    """
    usable = usable_images(images, "train").sort_values("path", ignore_index=True)
    if count > len(usable):
        raise LpvitError(f"calibration: {count} images asked for, the training split has {len(usable)}; ask for fewer")
    generator = np.random.default_rng(seed)
    members = [group.to_numpy() for _, group in usable.index.to_series().groupby(usable["label"])]
    quotas = _balanced_quotas(np.array([len(group) for group in members]), count, generator)
    if quotas.max() - quotas.min() > 1:
        _logger.warning(
            "calibration: small classes give all their images, %d to %d per class", quotas.min(), quotas.max()
        )
    drawn = [generator.permutation(group)[:quota] for group, quota in zip(members, quotas, strict=True)]
    return usable.loc[generator.permutation(np.concatenate(drawn))].reset_index(drop=True)


def _balanced_quotas(sizes: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Shares ``count`` over classes of the given sizes as evenly as the sizes allow."""
    quotas = np.zeros_like(sizes)
    while (missing := count - quotas.sum()) > 0:
        unfilled = np.flatnonzero(quotas < sizes)
        share = missing // len(unfilled)
        if share:
            quotas[unfilled] = np.minimum(quotas[unfilled] + share, sizes[unfilled])
        else:
            quotas[generator.permutation(unfilled)[:missing]] += 1
    return quotas
