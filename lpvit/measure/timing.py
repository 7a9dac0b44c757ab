"""Interleaved timing of functions, and medians with confidence intervals.

N = rounds.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

WARM_UP = 3  # rounds that are discarded: caches fill, clock rates rise
LEAST_ROUNDS = 7  # the interval from the smallest to the largest time contains the median with 98 % confidence


@dataclass(frozen=True)
class Interval:
    """A median and the ends of its 95 % interval."""

    median: float
    low: float
    high: float


def time_in_turns(
    functions: Mapping[str, Callable[[], object]],
    *,
    device: torch.device | str,
    seconds: float,
    clock: Callable[[], float] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Times interleaved calls of some functions, so that load on the machine affects all of them.

    A round calls each once, every other round in reverse order. The device is synchronised before the clock is read.

    Args:
        functions: Configuration -> function to time.
        device: Where they run.
        seconds: Per configuration; there are at least `LEAST_ROUNDS` rounds.
        clock: Returns seconds; by default wall-clock time.

    Returns:
        Configuration -> shape (N,); times of equal index are of the same round.
    """
    device, clock = torch.device(device), clock or time.perf_counter
    times: dict[str, list[float]] = {setup: [] for setup in functions}
    for _ in range(WARM_UP):
        for function in functions.values():
            _seconds(function, device, clock)
    end = time.perf_counter() + seconds * len(functions)
    rounds = 0
    while rounds < LEAST_ROUNDS or time.perf_counter() < end:
        for setup in list(functions)[:: -1 if rounds % 2 else 1]:
            times[setup].append(_seconds(functions[setup], device, clock))
        rounds += 1
    return {setup: np.array(of_setup) for setup, of_setup in times.items()}


def calm_clock(device: torch.device | str) -> Callable[[], float]:
    """The clock that other load affects least: processor time for one thread on a CPU, else wall-clock time."""
    alone = torch.device(device).type == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter


def random_inputs(*shape: int) -> torch.Tensor:
    """Normally distributed inputs of what is timed, always the same, which leaves the global generator alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def median_interval(samples: ArrayLike) -> Interval:
    """Median with its 95 % interval, from order statistics: the number of samples below it is binomial.

    Args:
        samples: Shape (N,), N at least 1; below 6 samples, the interval from smallest to largest has less than 95 %
            confidence.
    """
    ordered = np.sort(np.asarray(samples, np.float64))
    count = len(ordered)
    margin = 1.96 * math.sqrt(count) / 2
    low, high = max(0, math.floor(count / 2 - margin) - 1), min(count - 1, math.ceil(count / 2 + margin))
    return Interval(float(np.median(ordered)), float(ordered[low]), float(ordered[high]))


def _seconds(function: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    start = clock()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start
