"""Peak memory of a piece of work."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass
class Peak:
    """Peak memory minus that at the start, available after the work."""

    gib: float = 0.0


@contextmanager
def measured_peak() -> Iterator[Peak]:
    """GPU memory by torch if there is a GPU, else resident memory of this process (Linux)."""
    peak, before = Peak(), _reset()
    yield peak
    peak.gib = (_highest() - before) / 2**30


def _reset() -> int:
    """Resets the peak, and returns it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # else memory that the allocator keeps from earlier work hides the peak
        Path("/proc/self/clear_refs").write_text("5")
    return _highest()


def _highest() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])
