"""Whether a lower precision is slower here: processors without instructions for it emulate it."""

import functools
import logging

import numpy as np
import torch
from torch.nn import functional

from lpvit.measure.timing import calm_clock, random_inputs, time_in_turns

TOKENS, FEATURES = 256, 768  # of the product that is timed
MARGIN = 1.1  # of a ratio of two times that are taken to be equal

_logger = logging.getLogger(__name__)


def warn_if_slower(dtype: torch.dtype, device: torch.device, key: str) -> None:
    """Says once for every key that a precision is slower than float32 on this machine, by a timed product.

    Args:
        dtype: Floating point; float32 is not timed.
        device: Where it will be used.
        key: That asks for it, for the message.
    """
    if dtype not in (torch.float32, torch.float64):
        factor = slowdown(dtype, device, torch.get_num_threads())
        if factor > MARGIN:
            _warn(key, str(dtype).removeprefix("torch."), f"{factor:.1f}")


@functools.cache
def slowdown(dtype: torch.dtype, device: torch.device, threads: int) -> float:
    """Median time of a linear product over that in float32."""
    inputs, weight = random_inputs(TOKENS, FEATURES).to(device), random_inputs(FEATURES, FEATURES).to(device)
    products = {
        str(each): functools.partial(functional.linear, inputs.to(each), weight.to(each))
        for each in (torch.float32, dtype)
    }
    times = time_in_turns(products, device=device, seconds=0, clock=calm_clock(device))
    return float(np.median(times[str(dtype)]) / np.median(times[str(torch.float32)]))


@functools.cache
def _warn(key: str, name: str, factor: str) -> None:
    _logger.warning("%s: %s takes %s times as long as float32 on this machine; use float32 here", key, name, factor)
