"""Rules that give each block a priority, one function an allocator. Pure NumPy.

B = blocks of a layer in pruning order (least salient first), of which the first L may be pruned at all;
P = points of its rate-distortion curve.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpvit.allocation.problem import Floats, Layer, Requirement
from lpvit.allocation.settings import Budget
from lpvit.allocation.slopes import lpvit_priorities


def priorities(layers: Sequence[Layer], budget: Budget, requirement: Requirement) -> list[Floats]:
    """The rule of the allocator: priorities of the first L blocks of every layer, shape (L,), non-decreasing."""
    if budget.allocator == "lagrangian":
        return lagrangian_priorities(layers, requirement)
    if budget.allocator == "lpvit":
        return lpvit_priorities(layers, budget, requirement)
    return [_PRIORITY[budget.allocator](layer) for layer in layers]


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


def _uniform_priority(layer: Layer) -> Floats:
    """The same sparsity in every layer.

    Uniform+ is this with two floors: the first layer stays dense and the last keeps a fifth (Gale et al., 2019, The
    State of Sparsity, section 4). Here these are the first and the last *prunable* layer.
    """
    return _proportional_priority(layer, density=1.0)


def _erk_priority(layer: Layer) -> Floats:
    """Keep ratio proportional to (O + I) / (O * I), at most 1 (Erdos-Renyi-Kernel; Evci et al., 2020, RigL)."""
    sides, weights = layer.out_features + layer.in_features, layer.out_features * layer.in_features
    return _proportional_priority(layer, density=sides / weights)


def _proportional_priority(layer: Layer, density: float) -> Floats:
    """Priorities under which layers keep ``min(1, scale * density)`` of their blocks, for one falling scale.

    Of B blocks, the one that has k more salient ones leaves when ``scale * density`` falls below (k + 1/2) / B. Layers
    at 1 stay dense while the scale of the others falls, which is the redistribution that ERK asks for.
    """
    more_salient = np.arange(layer.blocks, dtype=np.float64)[::-1][: layer.limit]
    return -(more_salient + 0.5) / (layer.blocks * density)


def _global_priority(layer: Layer) -> Floats:
    """One threshold on the saliency of blocks over all layers."""
    return layer.saliency[: layer.limit]


def _lamp_priority(layer: Layer) -> Floats:
    """One threshold on LAMP scores: squared norm over the sum of those not smaller (Lee et al., 2021, equation 1).

    The scores decide how many blocks of a layer go; which ones is for the saliency to say, as for all allocators.
    """
    norms = np.sort(layer.squared_norm)
    not_smaller = np.cumsum(norms[::-1])[::-1]
    scores = np.divide(norms, not_smaller, out=np.zeros_like(norms), where=not_smaller > 0)
    return scores[: layer.limit]


_PRIORITY: dict[str, Callable[[Layer], Floats]] = {
    "uniform": _uniform_priority,
    "uniform_plus": _uniform_priority,
    "global": _global_priority,
    "lamp": _lamp_priority,
    "erk": _erk_priority,
}
