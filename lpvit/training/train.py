"""Training of a dense model from scratch, or of a pruned one with fixed masks.

The recipe is DeiT's (Touvron et al., ICML 2021, section 6 and table 9) built from timm's parts.
"""

import copy
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from lpvit.errors import LpvitError
from lpvit.measure.precision import warn_if_slower
from lpvit.models.drop_rates import set_drop_path
from lpvit.structures.blocks.grid import KeepMasks
from lpvit.training.events import Events, require_tensorboard
from lpvit.training.job import Training
from lpvit.training.launcher import launch, local_rank
from lpvit.training.progress import resumed_progress, seed_generators
from lpvit.training.saved import read_progress
from lpvit.training.trainer import Trainer

logger = logging.getLogger(__name__)


class Trained(NamedTuple):
    """The result of a training.

    Attributes:
        state: Weights on the CPU, averaged (EMA) if the recipe has an ``ema_decay``.
        history: Schema ``HISTORY``.
        keep_masks: The given ones, or those of gradual pruning.
    """

    state: dict[str, Tensor]
    history: pd.DataFrame
    keep_masks: KeepMasks


def train(training: Training) -> Trained:
    """Trains a model; an interrupted run resumes from its last checkpoint, with the same result.

    Several processes (`lpvit.training.launcher`) share each batch, with their gradients averaged.

    Returns:
        The weights, the history and the masks.

    Raises:
        LpvitError: The recipe does not fit the data, the model, the teacher or the machine; or the loss is not finite.
    """
    _check(training)
    require_tensorboard(training.events)
    warn_if_slower(getattr(torch, training.recipe.precision), training.device, "recipe: precision")
    model, teacher = (
        copy.deepcopy(training.model),
        copy.deepcopy(training.teacher),
    )  # may be one object
    if training.recipe.drop_path:
        set_drop_path(model, training.recipe.drop_path)
    job = replace(training, model=model, teacher=teacher)
    if job.processes == 1:
        _train(job)
    else:
        launch(_train, job, job.processes, "nccl" if job.device.type == "cuda" else "gloo", job.nodes)
    result = read_progress(job.resume_file)
    history, best = pd.DataFrame(result.history), result.best
    if best is not None:
        logger.info("epoch %d is kept: %s on the held-out training images", best.epoch, best.score)
        return Trained(best.state, history, result.keep_masks)
    return Trained(result.ema or result.model, history, result.keep_masks)


def _check(training: Training) -> None:
    processes, batch_size = training.processes, training.recipe.batch_size
    if processes % len(training.nodes):
        raise LpvitError(f"compute: processes {processes} cannot be split over {len(training.nodes)} nodes")
    if training.device.type == "cuda" and processes // len(training.nodes) > torch.cuda.device_count():
        raise LpvitError(
            f"compute: processes {processes} is more than the {torch.cuda.device_count()} GPUs of this machine"
        )
    if batch_size % processes:
        raise LpvitError(
            f"recipe: batch_size {batch_size} cannot be split over {processes} processes; choose a multiple"
        )


def _train(job: Training, rank: int = 0, processes: int = 1) -> None:
    """The training of one process; at the end the resume file contains the result."""
    torch.set_num_threads(max(1, job.threads * len(job.nodes) // processes))
    device = torch.device("cuda", local_rank()) if processes > 1 and job.device.type == "cuda" else job.device
    training_loader, validation_loader = job.make_loaders(rank, processes, device)
    if len(training_loader) == 0:
        raise LpvitError("recipe: the training split yields no batch; lower 'batch_size' or check the dataset")
    held_out = None if job.make_held_out is None else job.make_held_out(rank, processes, device)
    trainer = Trainer(job, device, len(training_loader), processes)
    progress = resumed_progress(job, trainer)
    first_epoch = len(progress.history) + 1
    with Events(job.events if rank == 0 else None, first_epoch) as events:
        for epoch in range(first_epoch, job.recipe.epochs + 1):
            start = time.monotonic()
            if progress.steps_done == 0:
                seed_generators(job.recipe.seed, epoch, rank)
            training_loader.set_epoch(epoch)
            loss = trainer.train_epoch(training_loader, epoch, progress, shown=rank == 0)
            score = trainer.validate(validation_loader, epoch, shown=rank == 0)
            chosen_by = None if held_out is None else trainer.validate(held_out, epoch, shown=rank == 0)
            if chosen_by is not None:
                progress.offer(epoch, chosen_by, trainer.evaluated.state_dict())
            measured = {
                "learning_rate": trainer.learning_rate,
                "train_loss": loss,
                "validation_loss": score.loss,
                score.main: getattr(score, score.main),
                f"held_out_{score.main}": math.nan if chosen_by is None else getattr(chosen_by, score.main),
                "seconds": time.monotonic() - start,
            }
            progress.end_epoch({"epoch": epoch, **measured})
            progress.save(trainer)
            events.write(epoch, measured)
            if rank == 0:
                logger.info(
                    "epoch %d/%d, %s left: loss %.4f, validation loss %.4f, %s, %.1f s",
                    *(epoch, job.recipe.epochs, _time_left(progress.history, job.recipe.epochs)),
                    *(loss, score.loss, score, measured["seconds"]),
                )


def _time_left(history: Sequence[Mapping[str, float]], epochs: int) -> str:
    """Estimated time of the remaining epochs, from the mean of the last three."""
    recent = [row["seconds"] for row in history[-3:]]
    seconds = (epochs - len(history)) * sum(recent) / len(recent)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
