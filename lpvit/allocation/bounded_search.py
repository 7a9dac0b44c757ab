"""The optimum of a multiple-choice knapsack, proved by a Lagrangian bound. Pure NumPy.

With a multiplier of the cost, the distortion of every allocation is at least a bound plus the excesses of its options.
So the optimum has no option whose excess exceeds the gap between the bound and a known solution, and few are left.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from lpvit.allocation.hull import lower_hull
from lpvit.allocation.knapsack import Curve, total_distortion
from lpvit.allocation.problem import Floats, Integers

PAIRS = 2**22  # of partial allocations and options that a search looks at: some seconds
ROUNDING = 1e-12  # of sums of distortions, relative
FIRST_GAP = 2**-8  # of the gap to the known solution


class TooManyPairsError(Exception):
    """The search would take too long."""


@dataclass(frozen=True)
class Relaxation:
    """The problem with a multiplier in place of the budget.

    Attributes:
        fewest, most: Cost to remove.
        multiplier: Distortion per cost.
        bound: Least distortion of all allocations, at least.
    """

    fewest: int
    most: int
    multiplier: float
    bound: float

    def excess(self, curve: Curve) -> Floats:
        """Of every number of pruned blocks of a layer, at least 0, shape (L + 1,)."""
        paid: Floats = curve.distortion - self.multiplier * curve.removed
        excess: Floats = paid - paid.min()
        return excess

    @property
    def binding(self) -> int:
        """The end of the budget that the multiplier stands for."""
        return self.fewest if self.multiplier >= 0 else self.most


@dataclass(frozen=True)
class Options:
    """Choices for a layer by rising excess, each array of shape (options,)."""

    counts: Integers
    removed: Integers
    excess: Floats


@dataclass(frozen=True)
class Partial:
    """Allocations of some layers: the cost that each removes, its excess, and what it adds to which one before.

    All arrays have the same shape, (allocations,).
    """

    removed: Integers
    excess: Floats
    before: Integers
    counts: Integers


def proved_optimum(curves: Sequence[Curve], fewest: int, most: int, known: Sequence[int]) -> list[int]:
    """The allocation of least distortion among those that remove a cost from ``fewest`` to ``most``.

    Args:
        curves: Of every layer.
        fewest: Cost to remove at least.
        most: Cost to remove at most; if no curve falls, at least ``fewest`` and the cost of the largest block less one.
        known: An allocation of that kind.

    Returns:
        Blocks pruned in every layer: ``known`` if none is better.

    Raises:
        TooManyPairsError: No proof is found within ``PAIRS``.
    """
    relaxation = _relax(curves, fewest, most)
    reached = total_distortion(curves, known)
    rounding = ROUNDING * (abs(reached) + abs(relaxation.multiplier * relaxation.binding))
    whole = reached - relaxation.bound
    for gap in _gaps(whole, rounding):
        found = _search(curves, relaxation, gap)
        if found is not None:
            return min(list(known), found, key=lambda counts: total_distortion(curves, counts))
    return list(known)


def _relax(curves: Sequence[Curve], fewest: int, most: int) -> Relaxation:
    """With the slope of the hulls where the budget is met as multiplier, which makes the bound great."""
    hulls = [_hull(curve) for curve in curves]
    slopes, removed = (np.concatenate(parts) for parts in zip(*hulls, strict=True))
    order = np.argsort(slopes)
    removed = np.cumsum(removed[order])
    at = np.minimum(np.searchsorted(removed, (fewest, most)), len(order) - 1)
    low, high = slopes[order][at]
    multiplier = float(max(low, min(high, 0.0)))  # none where the budget is met without one
    end = fewest if multiplier >= 0 else most
    least = sum(float((curve.distortion - multiplier * curve.removed).min()) for curve in curves)
    return Relaxation(fewest, most, multiplier, least + multiplier * end)


def _hull(curve: Curve) -> tuple[Floats, Integers]:
    """Slopes of the lower hull of a curve's points, and the cost that is removed with each."""
    last = len(curve.removed) - 1
    points = np.unique(np.append(curve.points[curve.points < last], (0, last)))
    vertices, slopes = lower_hull(curve.removed[points], curve.distortion[points])
    return np.array(slopes), np.diff(curve.removed[points[vertices]])


def _gaps(whole: float, rounding: float) -> Iterator[float]:
    """Rising gaps to search: the optimum is often far below the known solution, and the search grows with the gap."""
    gap = FIRST_GAP * whole
    while gap < whole:
        yield gap + rounding
        gap *= 2
    yield whole + rounding


def _search(curves: Sequence[Curve], relaxation: Relaxation, gap: float) -> list[int] | None:
    """The best allocation whose distortion exceeds the bound by ``gap`` at most; None if there is none.

    Raises:
        TooManyPairsError: As above.
    """
    options = [_options(curve, relaxation.excess(curve), gap) for curve in curves]
    order = sorted(range(len(options)), key=lambda layer: len(options[layer].counts))
    ordered = [options[layer] for layer in order]
    rising = all((np.diff(curve.distortion) >= 0).all() for curve in curves)
    nothing = np.zeros(1, dtype=np.int64)
    found = [Partial(nothing, np.zeros(1), nothing, nothing)]
    pairs = 0
    for layer, (least, most) in zip(ordered, _costs_of_the_rest(ordered), strict=True):
        partial, looked_at = _add_layer(found[-1], layer, gap, PAIRS - pairs)
        pairs += looked_at
        reachable = (partial.removed + least <= relaxation.most) & (partial.removed + most >= relaxation.fewest)
        partial = _where(partial, np.flatnonzero(reachable))
        found.append(_where(partial, _best(partial, relaxation.multiplier, rising)))
    total = found[-1].excess + relaxation.multiplier * (found[-1].removed - relaxation.binding)
    if not len(total) or total.min() > gap:
        return None
    counts = [0] * len(curves)
    place = int(np.argmin(total))
    for number, partial in zip(reversed(order), reversed(found), strict=False):  # the first one is of no layer
        counts[number], place = int(partial.counts[place]), int(partial.before[place])
    return counts


def _options(curve: Curve, excess: Floats, gap: float) -> Options:
    counts = np.flatnonzero(excess <= gap)
    counts = counts[np.argsort(excess[counts], kind="stable")]
    return Options(counts, curve.removed[counts], excess[counts])


def _costs_of_the_rest(layers: Sequence[Options]) -> list[tuple[int, int]]:
    """Least and most cost that the layers after each one can remove."""
    least = accumulate((int(layer.removed.min()) for layer in reversed(layers[1:])), initial=0)
    most = accumulate((int(layer.removed.max()) for layer in reversed(layers[1:])), initial=0)
    return list(zip(least, most, strict=True))[::-1]


def _add_layer(partial: Partial, layer: Options, gap: float, pairs: int) -> tuple[Partial, int]:
    """Every allocation with every option for one more layer, as far as their excess is within the gap."""
    order = np.argsort(partial.excess, kind="stable")
    fitting = np.searchsorted(partial.excess[order], gap - layer.excess, side="right")  # of each option: a prefix
    if (looked_at := int(fitting.sum())) > pairs:
        raise TooManyPairsError
    before = np.concatenate([order[:count] for count in fitting])
    option = np.repeat(np.arange(len(fitting)), fitting)
    removed, excess = partial.removed[before] + layer.removed[option], partial.excess[before] + layer.excess[option]
    return Partial(removed, excess, before, layer.counts[option]), looked_at


def _best(partial: Partial, multiplier: float, rising: bool) -> Integers:
    """Of allocations that remove the same cost the best; of rising curves, those that no other beats in both.

    Where all curves rise, what removes more than the budget needs can be restored without loss.
    """
    distortion = partial.excess + multiplier * partial.removed
    order = np.lexsort((distortion, -partial.removed))
    removed, distortion = partial.removed[order], distortion[order]
    kept = np.append(True, removed[1:] != removed[:-1])[: len(order)]
    if rising:
        kept[1:] &= distortion[1:] <= np.minimum.accumulate(distortion)[:-1]
    chosen: Integers = order[kept]
    return chosen


def _where(partial: Partial, chosen: Integers) -> Partial:
    return Partial(partial.removed[chosen], partial.excess[chosen], partial.before[chosen], partial.counts[chosen])
