"""Measured energy of running a model: counters of GPUs (NVML) and CPUs (RAPL), windows, idle power.

A machine without a counter is not an error: the result states what is missing.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch

from lpvit.progress import bar
from lpvit.store.schemas import ENERGY

logger = logging.getLogger(__name__)

POWERCAP = Path("/sys/class/powercap")
MARGIN = 1.05  # more calls in a window, so that it is long enough even if calls get faster after the warm-up


@dataclass(frozen=True)
class Counter:
    """An energy counter.

    Attributes:
        source: ``nvml`` or ``rapl``.
        read: Joules since an arbitrary time, after the device has finished its work.
    """

    source: str
    read: Callable[[], float]


def measure_energy(
    functions: Mapping[str, Callable[[], object]],
    images_per_call: int,
    *,
    device: torch.device | str,
    seconds: float = 10.0,
    repeats: int = 3,
    counter: Counter | str | None = None,
) -> pd.DataFrame:
    """Measures the energy of repeated calls of some functions, with and without the idle power of the device.

    Each repeat measures the idle device, then all configurations, every other time in reverse order, so that drift of
    clock rate or temperature affects all of them. A window has as many calls as fill ``seconds`` after a warm-up.

    Args:
        functions: Configuration -> one forward pass; may return before the device has finished.
        images_per_call: Images of a call.
        device: Where they run; its counter is read.
        seconds: Minimum length of a window; NVML's counter is refreshed about ten times a second, so that 10 s
            bound its error to 1 %.
        repeats: Windows per configuration.
        counter: Replaces that of the device, or the reason why there is none.

    Returns:
        Schema ``ENERGY``; without a counter one row per configuration with the reason.
    """
    counter = find_counter(device) if counter is None else counter
    if isinstance(counter, str):
        logger.warning("energy: not measured on this machine: %s", counter)
        return _table({"configuration": setup, "reason": counter, "repeat": 0, "images": 0} for setup in functions)
    calls = {setup: _warm_up(function, counter, seconds) for setup, function in functions.items()}
    rows = []
    for repeat in bar(range(1, repeats + 1), "energy", "repeat"):
        idle_seconds, idle_joules = _window(lambda: time.sleep(seconds), 1, counter)
        watts = idle_joules / idle_seconds
        for setup in list(functions)[:: 1 if repeat % 2 else -1]:
            elapsed, joules = _window(functions[setup], calls[setup], counter)
            rows.append(
                {
                    "configuration": setup,
                    "source": counter.source,
                    "repeat": repeat,
                    "images": calls[setup] * images_per_call,
                    "seconds": elapsed,
                    "joules": joules,
                    "idle_watts": watts,
                    "joules_net": joules - watts * elapsed,
                }
            )
    return _table(rows)


def find_counter(device: torch.device | str) -> Counter | str:
    """The energy counter of a device, or the reason why none can be read."""
    device = torch.device(device)
    return _nvml(device.index or 0) if device.type == "cuda" else _rapl(POWERCAP)


def _table(rows: Iterable[Mapping[str, object]]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=[column.name for column in ENERGY.columns])


def _warm_up(function: Callable[[], object], counter: Counter, seconds: float) -> int:
    """Calls that fill a window, from runs that double until they last a tenth of it."""
    calls = 1
    while (elapsed := _window(function, calls, counter)[0]) < seconds / 10:
        calls *= 2
    return math.ceil(MARGIN * seconds * calls / elapsed)


def _window(function: Callable[[], object], calls: int, counter: Counter) -> tuple[float, float]:
    """Seconds and joules of a window."""
    before, started = counter.read(), time.perf_counter()
    for _ in range(calls):
        function()
    after = counter.read()
    return time.perf_counter() - started, after - before


def _nvml(index: int) -> Counter | str:
    try:
        from zeus.device import get_gpus
        from zeus.exception import ZeusBaseError
    except ImportError:
        return "zeus is not installed; pip install 'lpvit[power]'"
    try:
        gpus = get_gpus()
        if not gpus.supports_get_total_energy_consumption(index):
            return f"GPU {index} has no energy counter (NVIDIA GPUs have one since Volta)"
    except ZeusBaseError as error:
        return f"GPU {index}: {str(error).splitlines()[0]}"

    def read() -> float:
        torch.cuda.synchronize(index)
        return float(gpus.get_total_energy_consumption(index)) / 1000

    return Counter("nvml", read)


@dataclass
class _Zone:
    """A RAPL zone, whose counter in microjoules wraps around; reads must be less than one period apart."""

    folder: Path
    last: int = field(init=False)
    rounds: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.range = int((self.folder / "max_energy_range_uj").read_text())
        self.last = self._raw()

    def joules(self) -> float:
        raw = self._raw()
        self.rounds += raw < self.last
        self.last = raw
        return 1e-6 * (self.rounds * self.range + raw)

    def _raw(self) -> int:
        return int((self.folder / "energy_uj").read_text())


def _rapl(powercap: Path) -> Counter | str:
    """All processor packages and their memory; read as files, because zeus would start a process."""
    try:
        zones = [
            _Zone(folder)
            for folder in sorted(powercap.glob("intel-rapl:*"))
            if (folder / "name").read_text().strip().startswith(("package", "dram"))
        ]
    except PermissionError as error:
        return f"RAPL: {error.filename} may only be read by root; give read access to it"
    except OSError as error:
        return f"RAPL: {error.filename}: {error.strerror}"
    if not zones:
        return f"RAPL: no processor package in {powercap} (not exposed by this CPU, or hidden in a virtual machine)"
    return Counter("rapl", lambda: sum(zone.joules() for zone in zones))
