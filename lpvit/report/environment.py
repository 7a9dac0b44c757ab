"""Provenance of results: versions, machine, commit, seconds and memory of stages."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd

from lpvit import __version__
from lpvit.store.records import read_effort

PACKAGES = ("torch", "timm", "torchvision", "nvidia-dali-cuda130", "snakemake", "numpy", "pandas")


def versions() -> dict[str, str]:
    """Package -> version, for installed packages."""
    found = {"lpvit": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str]:
    """The machine of this process."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "processor": _processor() or "unknown",
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.0f} GiB",
    }


def commit(folder: Path = Path(__file__).parent) -> str:
    """The commit of the code, marked if files differ from it; empty outside a checkout."""
    if shutil.which("git") is None:
        return ""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def durations(timed: Iterable[Mapping[str, str]]) -> pd.DataFrame:
    """Time and memory of stages, from the records of their jobs.

    Args:
        timed: ``stage``, ``of`` (whose) and ``log`` of each; jobs that did not run here are skipped.

    Returns:
        ``stage``, ``of``, ``seconds`` of wall time and ``mebibytes`` of the largest process.
    """
    efforts = ((entry, read_effort(entry["log"])) for entry in timed)
    rows = [(entry["stage"], entry["of"], *effort) for entry, effort in efforts if effort is not None]
    return pd.DataFrame(rows, columns=["stage", "of", "seconds", "mebibytes"])


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
