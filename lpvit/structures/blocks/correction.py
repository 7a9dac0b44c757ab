"""Predicted curves, corrected on a few images for the finite size of the change."""

import numpy as np
import pandas as pd

from lpvit.structures.blocks.masking import MeasuredModel, masked_curves

CORRECTION_POINTS = 5  # sparsities at which a curve is corrected: 0, 1/4, ... 1
SMALL_SHARE = 0.05  # of the pruned weights taken away: a change treated as infinitesimal


def corrected_curves(curves: pd.DataFrame, measured: MeasuredModel, blocks: pd.DataFrame) -> pd.DataFrame:
    r"""Corrects first-order curves for the finite size of the change.

    A few images suffice for the ratio of the distortions of a finite and an infinitesimal change, because both are
    measured on the same images (a control variate):

    .. math:: D_{corrected}(\alpha) = D(\alpha) \, \frac{\sum_x \lVert f(x; W) - f(x; W + \Delta W) \rVert^2}
        {\sum_x \lVert f(x; W) - f(x; W + h \Delta W) \rVert^2 / h^2}, \qquad h \ll 1,

    at ``CORRECTION_POINTS`` sparsities; its logarithm is linear in between, and 0 where nothing is pruned.

    Args:
        curves: Schema ``CURVES``, in the order of the layers.
        measured: The dense model, with a few images x.
        blocks: Scores, schema ``BLOCKS``.

    Returns:
        Schema ``CURVES``.

    Raises:
        LpvitError: As `masked_curves`.
    """
    finite, small = (masked_curves(measured, blocks, CORRECTION_POINTS, share) for share in (1.0, SMALL_SHARE))
    known = small["distortion"] > 0
    quotient = (finite["distortion"] / small["distortion"]).where(known & (finite["distortion"] > 0), 1.0)
    corrections = finite.assign(logarithm=np.log(quotient)).groupby("layer", sort=False)
    corrected = curves.copy()
    for layer, at in corrections:
        of_layer = corrected["layer"] == layer
        logarithm = np.interp(corrected.loc[of_layer, "sparsity"], at["sparsity"], at["logarithm"])
        corrected.loc[of_layer, "distortion"] *= np.exp(logarithm)
    return corrected
