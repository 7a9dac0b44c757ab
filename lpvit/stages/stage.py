"""Context of every workflow script: log, threads, device, and errors in one line."""

import logging
import resource
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lpvit.errors import LpvitError
from lpvit.settings import Compute
from lpvit.stages.gpus import gpus_asked, take_gpus
from lpvit.stages.labels import label_of
from lpvit.store.holding import end_with_the_run, require_held
from lpvit.store.records import drop_record, write_record

logger = logging.getLogger("lpvit")


@contextmanager
def stage(snakemake: Any) -> Iterator[Compute]:
    """Runs a stage: logs to its log file and the terminal, and ends with one line, on success or failure.

    How the stage is computed (device, threads, processes) is read from the config and is not a param, because
    changing it must not rerun anything.

    Args:
        snakemake: The object that Snakemake gives to a script.

    Yields:
        Device and threads; ``device`` is ``cpu`` or ``cuda``, ``threads`` are those of the job.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the workflow reports the interrupt, once for all jobs
    try:
        require_held()  # after a long wait in a queue the run may have ended
    except LpvitError as error:
        sys.exit(f"{snakemake.rule}: {error}")
    end_with_the_run()
    _log_to(snakemake.log[0], label_of(snakemake.log[0], snakemake.config))
    started = time.monotonic()
    _allow_modules(snakemake.config)
    try:
        drop_record(snakemake.log[0])
        yield _compute(snakemake)
        effort = {"seconds": time.monotonic() - started, "mebibytes": _largest_memory()}
        write_record(snakemake.log[0], snakemake.rule, dict(snakemake.params.items()), **effort)
    except LpvitError as error:
        for line in str(error).splitlines():
            logger.error("%s: %s", snakemake.rule, line)
        sys.exit(1)
    except Exception as error:
        if _is_out_of_memory(error):
            logger.error("%s: out of memory; lower a 'batch_size', or give it a larger machine", snakemake.rule)
            sys.exit(1)
        logger.exception("%s: a bug, or an unsupported case", snakemake.rule)
        sys.exit(1)
    logger.info("%s: done in %.1f s", snakemake.rule, time.monotonic() - started)


def _allow_modules(config: Mapping[str, Any]) -> None:
    """Functions that build models may run if the config names them."""
    for model in (config.get("models") or {}).values():
        if model.get("module") is not None:
            from lpvit.models.sources.module import allow  # imports torch

            allow(model["module"])


def _largest_memory() -> float:
    """Mebibytes of the largest process of this job at its peak."""
    peaks = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(peaks) / 1024


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out in Python, NumPy, torch on the CPU (a RuntimeError) or on the GPU."""
    told = str(error)
    return isinstance(error, MemoryError) or "can't allocate memory" in told or "CUDA out of memory" in told


def _compute(snakemake: Any) -> Compute:
    asked = Compute.model_validate(snakemake.config.get("compute", {}))
    gpus = gpus_asked(snakemake.resources)
    take_gpus(gpus)
    if "torch" not in sys.modules:
        return asked
    import torch

    torch.set_num_threads(snakemake.threads)
    device = asked.device if gpus else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise LpvitError("config: compute.device: 'cuda', but torch finds no GPU; use 'auto' or 'cpu'")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return asked.model_copy(update={"device": device, "threads": snakemake.threads})


def _log_to(file: str, label: str) -> None:
    """Logs to a file and to the terminal, every line with the label of the stage."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).unlink(missing_ok=True)  # that of another user may not be writable
    prefix = f"[{label}] ".replace("%", "%%") if label else ""
    form = f"%(asctime)s {prefix}%(message)s"
    handlers: list[logging.Handler] = [logging.FileHandler(file, mode="w"), logging.StreamHandler()]
    logging.basicConfig(level=logging.INFO, format=form, datefmt="%H:%M:%S", handlers=handlers)
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a log on a full disk: the error itself is reported
