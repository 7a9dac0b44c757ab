"""Slopes of the lower convex hulls of curves: priorities of blocks, least distortion per cost first. Pure NumPy.

B = blocks of a layer in pruning order (least salient first), of which the first L may be pruned at all;
P = points of its rate-distortion curve.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpvit.allocation.problem import Floats, Layer, Requirement


def lagrangian_priorities(layers: Sequence[Layer], requirement: Requirement) -> list[Floats]:
    """Slope, in distortion per cost, of the lower convex hull of every curve over every block.

    Pruning by rising slope minimises ``sum of distortion + lagrange_multiplier * cost kept`` at every multiplier
    (Shoham and Gersho, 1988).
    """
    return [_hull_slopes(layer, removed) for layer, removed in zip(layers, requirement.removed, strict=True)]


def _hull_slopes(layer: Layer, removed: NDArray[Any]) -> Floats:
    """Of the first L blocks, shape (L,). The curve ends at the limit, and is linear between its points."""
    x, first = np.unique(layer.blocks_pruned, return_index=True)  # a small layer has fewer blocks than points
    y = layer.distortion[first]
    inside = x < layer.limit
    pruned, distortion = np.append(x[inside], layer.limit), np.append(y[inside], np.interp(layer.limit, x, y))
    vertices, slopes = lower_hull(removed[pruned], distortion)
    return np.repeat(slopes, np.diff(pruned[vertices]))


def lower_hull(x: NDArray[Any], y: Floats) -> tuple[list[int], list[float]]:
    """Vertices of the lower convex hull of points by rising x, and the slopes between them, which rise strictly.

    Args:
        x: Shape (P,), strictly rising.
        y: Shape (P,).
    """
    vertices: list[int] = []
    slopes: list[float] = []
    for point in range(len(x)):
        while vertices:
            slope = float((y[point] - y[vertices[-1]]) / (x[point] - x[vertices[-1]]))
            if not slopes or slopes[-1] < slope:
                slopes.append(slope)
                break
            vertices.pop()
            slopes.pop()
        vertices.append(point)
    return vertices, slopes
