"""Progress of a training, and the checkpoint from which every process of an interrupted training resumes exactly."""

import logging
import random
import time
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, distributed

from lpvit.errors import LpvitError, one_line
from lpvit.store.artifacts import save
from lpvit.training.job import Training
from lpvit.training.saved import Saved, read_progress
from lpvit.training.settings import Recipe
from lpvit.training.tasks.task import Score

_logger = logging.getLogger(__name__)


class Resumable(Protocol):
    """The part of a trainer that is saved with its progress, and restored."""

    recipe: Recipe
    total_steps: int

    def state(self) -> dict[str, Any]:
        """Weights and states of optimiser, schedule and averages."""

    def resume(self, saved: Saved) -> None:
        """Restores the trainer from a saved state."""


class TrainingProgress:
    """The history of a training, and its position within an epoch.

    Attributes:
        history: One row for every finished epoch, as in ``HISTORY``.
        best: Epoch, score on the held-out images and weights of the best epoch, if there are such images.
        steps_done: Optimiser steps of the current epoch.
        sums: Loss and images of those steps, in this process.
    """

    def __init__(self, job: Training, history: list[dict[str, float]]) -> None:
        self.history, self.steps_done, self.sums = history, 0, [0.0, 0.0]
        self.best: dict[str, Any] | None = None
        self._file, self._fingerprint, self._interval = job.resume_file, job.fingerprint, 60 * job.checkpoint_minutes
        self._saved = time.monotonic()

    def end_step(self, loss: float, images: int, trainer: Resumable) -> None:
        """Records an optimiser step, and writes a checkpoint if the last one is old."""
        self.steps_done += 1
        self.sums = [self.sums[0] + loss * images, self.sums[1] + images]
        if _first_process_says(time.monotonic() - self._saved > self._interval):
            self.save(trainer)
            if _rank() == 0:
                steps, epochs = trainer.total_steps // trainer.recipe.epochs, trainer.recipe.epochs
                place = (len(self.history) + 1, epochs, self.steps_done, steps)
                _logger.info("epoch %d/%d, step %d/%d: loss %.4f so far, saved", *place, self.sums[0] / self.sums[1])

    def offer(self, epoch: int, score: Score, state: Mapping[str, Tensor]) -> None:
        """Keeps the weights of an epoch if they are better on the held-out images: main figure, then loss."""
        merit = -score.loss if score.main == "loss" else getattr(score, score.main)
        if self.best is None or (merit, -score.loss) > (self.best["merit"], -self.best["loss"]):
            kept = {name: value.detach().cpu().clone() for name, value in state.items()}
            self.best = {"epoch": epoch, "merit": merit, "loss": score.loss, "score": str(score), "state": kept}

    def end_epoch(self, row: dict[str, float]) -> None:
        self.history.append(row)
        self.steps_done, self.sums = 0, [0.0, 0.0]

    def save(self, trainer: Resumable) -> None:
        """Writes the state of all processes."""
        place = {"steps_done": self.steps_done, "processes": _of_all_processes((self.sums, _generators()))}
        if _rank() == 0:
            save(
                trainer.state()
                | place
                | {"fingerprint": self._fingerprint, "history": self.history, "best": self.best},
                self._file,
                "training",
            )
        self._saved = time.monotonic()

    def resume(self, saved: Saved) -> None:
        """Restores a position within an epoch."""
        self.steps_done, self.best = saved.steps_done, saved.best.model_dump() if saved.best else None
        self.sums, generators = saved.processes[_rank()]
        if self.steps_done:
            _set_generators(generators)


def resumed_progress(job: Training, trainer: Resumable) -> TrainingProgress:
    """New progress, or that of the resume file if it belongs to this training; the trainer is then restored."""
    file = job.resume_file
    if not file.exists():
        return TrainingProgress(job, [])
    saved = read_progress(file)
    try:
        if saved.fingerprint != job.fingerprint or len(saved.processes) != job.processes:
            _logger.info("%s: belongs to another training; starting again", file)
            return TrainingProgress(job, [])
        trainer.resume(saved)
        progress = TrainingProgress(job, saved.history)
        progress.resume(saved)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise LpvitError(f"{file}: is not a state of this training ({one_line(error)}); delete it and rerun") from None
    within = f", step {progress.steps_done}" * bool(progress.steps_done)
    _logger.info("%s: resuming after epoch %d%s", file, len(progress.history), within)
    return progress


def seed_generators(seed: int, epoch: int, rank: int) -> None:
    """Seeds every generator from the arguments alone, so that an epoch can be repeated."""
    for_python, for_numpy, for_torch = np.random.SeedSequence((seed, epoch, rank)).generate_state(3).tolist()
    random.seed(for_python)
    np.random.seed(for_numpy)  # noqa: NPY002  timm's mixup draws from it
    torch.manual_seed(for_torch)


def _generators() -> dict[str, Any]:
    on_gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    name, key, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (name, np.asarray(key).tolist(), *rest),  # plain numbers, as required by `lpvit.store.artifacts.load`
        "torch": torch.get_rng_state(),
        "cuda": on_gpu,
    }


def _set_generators(states: dict[str, Any]) -> None:
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"])


def _rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def _first_process_says(decision: bool) -> bool:
    """Broadcasts the decision of the first process."""
    if not distributed.is_initialized():
        return decision
    flag = torch.tensor([int(decision)], device="cuda" if distributed.get_backend() == "nccl" else "cpu")
    distributed.broadcast(flag, src=0)
    return bool(flag.item())


def _of_all_processes(value: Any) -> list[Any]:
    if not distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values
