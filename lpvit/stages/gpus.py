"""The GPUs of this machine, and which of them a job uses. Asks neither torch nor a driver."""

import fcntl
import getpass
import logging
import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

VISIBLE = "CUDA_VISIBLE_DEVICES"

logger = logging.getLogger(__name__)

_locks: list[int] = []  # open for the life of the process: a closed file loses its lock


def visible_gpus() -> list[str]:
    """Names of the GPUs that a process on this machine sees, as in ``CUDA_VISIBLE_DEVICES``."""
    given = os.environ.get(VISIBLE)
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def gpus_asked(resources: Any) -> int:
    """The GPUs of a job on this machine.

    Args:
        resources: Of Snakemake: ``gpu``, or of SLURM ``gres``, such as ``gpu:2`` or ``gpu:a100:2``.
    """
    gres = re.match(r"gpu(?::\w+)*?:(\d+)", str(resources.get("gres") or ""))
    return int(gres[1]) if gres else int(resources.get("gpu") or 0)


def take_gpus(count: int, folder: Path | None = None) -> list[str]:
    """Reserves GPUs for this process until it ends, and hides all others from it and its children.

    Must be called before CUDA starts. Where all are taken, by other runs, those that come first are shared.

    Args:
        count: GPUs of this job. With 0 it sees none.
        folder: Of the lock files; by default that of the user for temporary files of this machine.

    Returns:
        Their names; none where no GPU is found, and the environment stays as it is.
    """
    gpus = visible_gpus()
    if not gpus:
        return []
    free = _lock_free(gpus, count, folder or Path(tempfile.gettempdir(), f"lpvit-gpus-{getpass.getuser()}"))
    taken = [*free, *(gpu for gpu in gpus if gpu not in free)][:count]
    if len(free) < len(taken) < len(gpus):
        logger.info("GPU %s is shared with another run", ", ".join(taken[len(free) :]))
    os.environ[VISIBLE] = ",".join(taken)
    return taken


def _lock_free(gpus: Sequence[str], count: int, folder: Path) -> list[str]:
    """The first GPUs that no other process has locked."""
    free: list[str] = []
    with suppress(OSError):  # without a folder for the locks, GPUs are shared
        folder.mkdir(mode=0o700, exist_ok=True)
        for gpu in gpus:
            if len(free) == count:
                break
            file = os.open(folder / gpu.replace("/", "_"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                continue
            _locks.append(file)
            free.append(gpu)
    return free


def own_nodes(asked: Sequence[str] | int | Literal["slurm"]) -> int:
    """The number of machines that the run itself spreads a training over; not those that a scheduler gives its job.

    Args:
        asked: ``compute.nodes`` of the config.
    """
    if asked == "slurm":
        return int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    return 1 if isinstance(asked, int) else max(1, len(asked))
