"""A budget by its outcome: the cheapest model that loses no more, or the largest that is fast enough.

Candidates at several shares of the MACs come from one measurement of the dense model; each is compressed, refitted and
measured. The outcome is taken to be monotone in the share, so a binary search measures a few of them.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass

import pandas as pd

from lpvit.allocation.allocate import allocate
from lpvit.allocation.settings import Budget
from lpvit.allocation.tables import LayerTables, problem_of
from lpvit.errors import LpvitError
from lpvit.progress import labelled
from lpvit.structures.structure import Compressed

SHARES = tuple(percent / 100 for percent in range(90, 5, -5))  # of the dense model's MACs, falling

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Estimate:
    """A measured outcome with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Candidate:
    """A compressed model and what was measured of it.

    Attributes:
        macs: Share of the dense model's MACs that it was asked to keep.
        compressed: The model.
        outcome: In points of accuracy or milliseconds.
        meets: Whether the outcome is within the budget.
    """

    macs: float
    compressed: Compressed
    outcome: Estimate
    meets: bool


def reachable_shares(tables: LayerTables, budget: Budget, shares: Sequence[float] = SHARES) -> list[float]:
    """The shares of the MACs that the layers can be compressed to, falling.

    Raises:
        LpvitError: None of them.
    """
    found = []
    for share in sorted(shares, reverse=True):
        with suppress(LpvitError):
            problem_of(tables, budget.at(share))
            found.append(share)
    if not found:
        allocate(tables, budget.at(max(shares)))  # raises with the reason
    return found


def search(
    budget: Budget,
    shares: Sequence[float],
    compress: Callable[[Budget], Compressed],
    measure: Callable[[Compressed], Estimate],
) -> list[Candidate]:
    """Measures candidates until the best one that meets a budget is known.

    Args:
        budget: With an outcome.
        shares: Of the MACs, falling.
        compress: Budget of a share -> refitted model.
        measure: Of that outcome.

    Returns:
        All candidates measured, by falling share; `best` is among them.

    Raises:
        LpvitError: No candidate meets the budget.
    """
    found = list(_bisect(budget, shares, compress, measure))
    if not any(candidate.meets for candidate in found):
        name, target = budget.outcome
        nearest = min(found, key=lambda candidate: candidate.outcome.value)
        value, low, high = astuple(nearest.outcome)
        raise LpvitError(
            f"budget: {name} {target:g} is impossible: at {nearest.macs:.0%} of the MACs it is {value:.2f} "
            f"({low:.2f} to {high:.2f}); raise '{name}'"
        )
    return sorted(found, key=lambda candidate: -candidate.macs)


def _bisect(
    budget: Budget,
    shares: Sequence[float],
    compress: Callable[[Budget], Compressed],
    measure: Callable[[Compressed], Estimate],
) -> Iterator[Candidate]:
    """Candidates in the order of a binary search over ``shares``."""
    name, target = budget.outcome
    cheaper_is_worse = name == "points_lost"
    low, high = 0, len(shares)
    while low < high:
        middle = (low + high) // 2
        with labelled(f"{shares[middle]:.0%} of the MACs"):
            compressed = compress(budget.at(shares[middle]))
            outcome = measure(compressed)
        meets = outcome.value <= target
        _logger.info("%s at %.0f %% of the MACs: %.3g (%.3g to %.3g)", name, 100 * shares[middle], *astuple(outcome))
        yield Candidate(shares[middle], compressed, outcome, meets)
        if meets == cheaper_is_worse:
            low = middle + 1
        else:
            high = middle


def best(candidates: Sequence[Candidate], outcome: str) -> Candidate:
    """Of the candidates that meet the budget, the one with the fewest MACs; for milliseconds, with the most."""
    sign = 1 if outcome == "points_lost" else -1
    return min((each for each in candidates if each.meets), key=lambda each: sign * each.macs)


def outcome_table(candidates: Sequence[Candidate], budget: Budget) -> pd.DataFrame:
    """Schema ``OUTCOMES``, a row per candidate."""
    outcome, target = budget.outcome
    chosen = best(candidates, outcome)
    return pd.DataFrame(
        [
            {
                "outcome": outcome,
                "target": target,
                "macs": each.macs,
                "value": each.outcome.value,
                "low": each.outcome.low,
                "high": each.outcome.high,
                "meets": each.meets,
                "chosen": each is chosen,
            }
            for each in candidates
        ]
    )
