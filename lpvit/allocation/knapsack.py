"""The multiple-choice knapsack of the exact allocator: one number of pruned blocks for every layer. Pure NumPy.

Finds the choice of least total distortion among those that remove at least the required cost, by less than one block
more. L = blocks of a layer that may be pruned; P = points of its curve.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CELLS = 2**14  # resolution of the cost: 0.006 %
WINDOW = 2  # cells on either side of the coarse solution that the fine one searches


@dataclass(frozen=True)
class Curve:
    """Removed cost and distortion of pruning the first 0 .. L blocks of a layer.

    Attributes:
        removed: Cost removed, shape (L + 1,), strictly rising from 0.
        distortion: Shape (L + 1,); of any form.
        points: Numbers of blocks between which the distortion is linear, shape (P,), rising; may exceed L.
    """

    removed: Integers
    distortion: Floats
    points: Integers


@dataclass(frozen=True)
class Options:
    """Some choices for a layer.

    Attributes:
        counts: Blocks pruned, rising.
        cells: Cells of cost that they remove in addition to the first option.
        distortion: Of each.
    """

    counts: Integers
    cells: Integers
    distortion: Floats


def least_distortion(curves: Sequence[Curve], required: int, start: Sequence[int]) -> list[int]:
    """Solves the knapsack by dynamic programming over the layers, with the cost divided into cells.

    Exact where the cost of all blocks, in units of its greatest common divisor, fits into ``CELLS`` cells. Beyond that
    it solves on ``CELLS`` coarse cells, choosing from the points of the curves and one number of blocks a cell, then on
    finer cells around the result, and returns the best of both and ``start``.

    Args:
        curves: Of every layer.
        required: Cost to remove.
        start: A choice that meets the budget to one block; the result is never worse.

    Returns:
        Blocks pruned in every layer.
    """
    steps = np.concatenate([np.diff(curve.removed) for curve in curves])
    if not len(steps):
        return list(start)
    unit, largest = int(np.gcd.reduce(steps)), largest_block(curves)
    best = list(start)
    windows = [(0, len(curve.removed) - 1) for curve in curves]
    for _ in ("coarse", "fine"):
        least = sum(int(curve.removed[low]) for curve, (low, _) in zip(curves, windows, strict=True))
        most = sum(int(curve.removed[high]) for curve, (_, high) in zip(curves, windows, strict=True))
        cell = unit * max(1, -(-(most - least) // (unit * CELLS)))
        options = [_options(curve, *window, cell) for curve, window in zip(curves, windows, strict=True)]
        reach = sum(int(option.cells[-1]) for option in options)  # a block may cost less than one cell
        most_cells = min((required + largest - 1 - least) // cell, reach)
        choice = _solve(options, -((least - required) // cell), most_cells)
        choice = _into_budget(curves, choice, required, largest)
        best = min(best, choice, key=lambda counts: total_distortion(curves, counts))
        if cell == unit:
            break
        windows = [_around(curve.removed, count, WINDOW * cell) for curve, count in zip(curves, best, strict=True)]
    return best


def _options(curve: Curve, low: int, high: int, cell: int) -> Options:
    """Between ``low`` and ``high`` blocks: these two, the points of the curve, and the first number in every cell."""
    points = curve.points[(low < curve.points) & (curve.points < high)]
    grid = np.searchsorted(curve.removed, np.arange(curve.removed[low], curve.removed[high] + 1, cell))
    counts = np.unique(np.concatenate([(low, high), points, grid]))
    cells = np.rint((curve.removed[counts] - curve.removed[low]) / cell).astype(np.int64)
    return Options(counts, cells, curve.distortion[counts])


def _around(removed: Integers, count: int, margin: int) -> tuple[int, int]:
    """Fewest and most blocks whose cost is at most ``margin`` away, and at least one block to either side."""
    low = int(np.searchsorted(removed, removed[count] - margin))
    high = int(np.searchsorted(removed, removed[count] + margin, side="right")) - 1
    return max(0, min(low, count - 1)), min(len(removed) - 1, max(high, count + 1))


def _solve(layers: Sequence[Options], fewest: int, most: int) -> list[int]:
    """The choice of least distortion that removes ``fewest`` to ``most`` cells, or else the nearest number below.

    ``least[c]`` is the least distortion of the layers so far when they remove c cells.
    """
    least = np.full(max(0, fewest, most) + 1, np.inf)
    least[0] = 0.0
    taken = []
    for layer in layers:
        least, option = _add_layer(least, layer)
        taken.append(option)
    reached = np.flatnonzero(np.isfinite(least))
    allowed = reached[reached >= fewest] if reached[-1] >= fewest else reached[-1:]
    cells = int(allowed[np.argmin(least[allowed])])
    counts = []
    for layer, option in zip(reversed(layers), reversed(taken), strict=True):
        counts.append(int(layer.counts[option[cells]]))
        cells -= int(layer.cells[option[cells]])
    return counts[::-1]


def _add_layer(least: Floats, layer: Options) -> tuple[Floats, Integers]:
    """One step of the dynamic programme, ``min_j (least[c - cells_j] + distortion_j)``, and the j that attains it."""
    with_layer = np.full_like(least, np.inf)
    option = np.zeros(len(least), dtype=np.int64)
    for j, (cells, distortion) in enumerate(zip(layer.cells.tolist(), layer.distortion.tolist(), strict=True)):
        if cells >= len(least):
            break
        candidate = least[: len(least) - cells] + distortion
        better = candidate < with_layer[cells:]
        np.copyto(with_layer[cells:], candidate, where=better)
        np.copyto(option[cells:], j, where=better)
    return with_layer, option


def _into_budget(curves: Sequence[Curve], counts: Sequence[int], required: int, largest: int) -> list[int]:
    """Corrects the rounding to cells: prunes or restores blocks, the best per cost first, to meet the budget."""
    counts = list(counts)
    removed = sum(int(curve.removed[count]) for curve, count in zip(curves, counts, strict=True))
    while not required <= removed < required + largest:
        step = 1 if removed < required else -1
        _, change, layer = min(
            _slope(curve, count, count + step, layer)
            for layer, (curve, count) in enumerate(zip(curves, counts, strict=True))
            if 0 <= count + step < len(curve.removed)
        )
        counts[layer] += step
        removed += change
    return counts


def _slope(curve: Curve, count: int, other: int, layer: int) -> tuple[float, int, int]:
    """Rise of the distortion per cost, between two numbers of blocks; the change of the cost; the layer."""
    change = int(curve.removed[other] - curve.removed[count])
    return float(curve.distortion[other] - curve.distortion[count]) / abs(change), change, layer


def largest_block(curves: Sequence[Curve]) -> int:
    """The most that one block costs; 0 where none may be pruned."""
    return max((int(np.diff(curve.removed).max()) for curve in curves if len(curve.removed) > 1), default=0)


def total_distortion(curves: Sequence[Curve], counts: Sequence[int]) -> float:
    return float(sum(curve.distortion[count] for curve, count in zip(curves, counts, strict=True)))
