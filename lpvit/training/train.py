"""Training, of a dense model from scratch as of a pruned one with frozen masks.

The recipe is DeiT's (Touvron et al., ICML 2021, section 6 and table 9) built from timm's parts. N = images of a batch;
K = classes.
"""

import copy
import logging
import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from lpvit.data.loading import Loader
from lpvit.errors import LpvitError
from lpvit.models.blocks import KeepMasks
from lpvit.store.artifacts import load, save
from lpvit.training.evaluation import Accuracy, evaluation_sums
from lpvit.training.launcher import launch
from lpvit.training.loss import TrainingLoss
from lpvit.training.settings import Recipe
from lpvit.weights.masks import expand_keep_masks, verify_pruned, zero_pruned

logger = logging.getLogger(__name__)


# (rank, processes, device) -> this process's part of the training split (as many batches, all of the same size, for
# every rank: batch_size / processes images) and of the validation split (of any size)
MakeLoaders = Callable[[int, int, torch.device], tuple[Loader, Loader]]


def train(
    model: nn.Module,
    recipe: Recipe,
    make_loaders: MakeLoaders,
    *,
    keep_masks: KeepMasks | None = None,
    block_shape: tuple[int, int] = (1, 1),
    teacher: nn.Module | None = None,
    device: torch.device,
    threads: int = 1,
    processes: int = 1,
    resume_file: Path,
    fingerprint: str,
) -> tuple[dict[str, Tensor], pd.DataFrame]:
    """Trains a model; a run that was killed goes on after its last complete epoch, to the same result.

    Several processes (`lpvit.training.launcher`) share each batch, with their gradients averaged.

    Args:
        model: Its weights are the start; left as it is. Stochastic depth is what it was created with.
        recipe: What to do; the augmentation of single images is left to the loaders.
        make_loaders: Called once in every process. With several, it can be pickled and stands in an importable module.
        keep_masks: Blocks whose weights stay; all others are and remain exactly zero.
        block_shape: (r, c) of the keep masks.
        teacher: For a recipe with distillation; left as it is. It sees the student's images, converted to its own
            normalisation and size.
        device: Where to train; process i of several uses GPU i.
        threads: CPU threads, over all processes.
        processes: How many.
        resume_file: Holds the state after each epoch. It stays: delete it once the result is saved.
        fingerprint: Names everything that the result depends on; a resume file with another one is not used.

    Returns:
        The state dict on the CPU, averaged (EMA) if the recipe says so, and the table `schemas.HISTORY`.

    Raises:
        LpvitError: The recipe does not fit the data, the model, the teacher or the machine; or the loss is not finite.
    """
    _check(recipe, device, processes)
    job = _Job(
        *copy.deepcopy((model, teacher)),
        recipe,
        make_loaders,
        dict(keep_masks or {}),
        block_shape,
        device,
        max(1, threads // processes),
        resume_file,
        fingerprint,
    )
    if processes == 1:
        _train(job)
    else:
        launch(_train, job, processes, backend="nccl" if device.type == "cuda" else "gloo")
    result = load(resume_file, "training")
    return result["ema"] or result["model"], pd.DataFrame(result["history"])


def _check(recipe: Recipe, device: torch.device, processes: int) -> None:
    if device.type == "cuda" and processes > torch.cuda.device_count():
        raise LpvitError(
            f"compute: processes {processes} is more than the {torch.cuda.device_count()} GPUs of this machine"
        )
    if recipe.batch_size % processes:
        raise LpvitError(
            f"recipe: batch_size {recipe.batch_size} cannot be split over {processes} processes; choose a multiple"
        )


@dataclass(frozen=True)
class _Job:
    """What every process is given."""

    model: nn.Module
    teacher: nn.Module | None
    recipe: Recipe
    make_loaders: MakeLoaders
    keep_masks: KeepMasks
    block_shape: tuple[int, int]
    device: torch.device
    threads: int
    resume_file: Path
    fingerprint: str


def _train(job: _Job, rank: int = 0, processes: int = 1) -> None:
    """The part of one process; at the end the resume file holds the result."""
    torch.set_num_threads(job.threads)
    device = torch.device("cuda", rank) if processes > 1 and job.device.type == "cuda" else job.device
    training_loader, validation_loader = job.make_loaders(rank, processes, device)
    if len(training_loader) == 0:
        raise LpvitError("recipe: the training split gives no batch; lower 'batch_size' or check the dataset")
    trainer = _Trainer(job, device, len(training_loader), processes)
    history = trainer.resume(job.resume_file, job.fingerprint)
    for epoch in range(len(history) + 1, job.recipe.epochs + 1):
        start = time.monotonic()
        _seed(job.recipe.seed, epoch, rank)
        training_loader.set_epoch(epoch)
        loss = trainer.train_epoch(training_loader, epoch, progress=rank == 0)
        accuracy = trainer.validate(validation_loader, epoch, progress=rank == 0)
        history.append(
            {
                "epoch": epoch,
                "learning_rate": trainer.learning_rate,
                "train_loss": loss,
                "validation_loss": accuracy.loss,
                "top1": accuracy.top1,
                "seconds": time.monotonic() - start,
            }
        )
        if rank == 0:
            save(trainer.state() | {"fingerprint": job.fingerprint, "history": history}, job.resume_file, "training")
            logger.info(
                "epoch %d of %d: loss %.4f, validation loss %.4f, top-1 %.2f %%, %.1f s",
                *(epoch, job.recipe.epochs, loss, accuracy.loss, accuracy.top1, history[-1]["seconds"]),
            )


class _Trainer:
    """A model, and all that changes with it from step to step."""

    def __init__(self, job: _Job, device: torch.device, steps_per_epoch: int, processes: int) -> None:
        recipe = job.recipe
        self.recipe, self.device = recipe, device
        self.model = job.model.to(device)
        self.expanded_masks = expand_keep_masks(self.model, job.keep_masks, job.block_shape)
        zero_pruned(self.model.state_dict(), self.expanded_masks)
        self.loss = TrainingLoss(
            self.model, job.teacher, recipe.distillation, recipe.distillation_alpha, recipe.distillation_temperature
        ).to(device)
        self.ema = ModelEmaV3(self.model, decay=recipe.ema_decay) if recipe.ema_decay is not None else None
        self.optimizer = create_optimizer_v2(
            self.model, "adamw", lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.schedule = learning_rate_schedule(self.optimizer, recipe, steps_per_epoch)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
        self.augment = BatchAugmentation(recipe, self.model.num_classes, device)  # type: ignore[arg-type]
        self.network: nn.Module = self.model
        if processes > 1:
            self.network = DistributedDataParallel(self.model, [device] if device.type == "cuda" else None)
        self.steps = 0

    @property
    def learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def evaluated(self) -> nn.Module:
        """The model that counts: the averaged one if there is one."""
        return self.model if self.ema is None else self.ema.module

    def train_epoch(self, loader: Loader, epoch: int, progress: bool) -> float:
        """One pass over the training split.

        Returns:
            Mean loss over the images of all processes, in nat.
        """
        self.network.train()
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)  # loss, images
        title = f"epoch {epoch}/{self.recipe.epochs}"
        bar = tqdm(loader, title, unit="batch", leave=False, disable=None if progress else True)
        for step, (images, labels) in enumerate(bar, start=1):
            loss = self.step(*self.augment(images, labels))
            _require_finite(loss, f"the loss in epoch {epoch}, step {step}")
            sums += sums.new_tensor([loss * len(images), len(images)])
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        total, count = _over_processes(sums).tolist()
        for model in {self.model, self.evaluated}:
            verify_pruned(model.state_dict(), self.expanded_masks)
        return float(total / count)

    def step(self, images: Tensor, targets: Tensor) -> float:
        """One update of the weights; returns the loss before it. A loss that is not finite updates nothing."""
        with self._autocast():
            output = self.network(images)
            loss = self.loss(images, output, targets)
        value = float(loss.detach())
        if not np.isfinite(value):
            return value
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        self._freeze_pruned()
        if self.recipe.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.model)
        self.steps += 1
        self.schedule.step_update(self.steps)
        return value

    def validate(self, loader: Loader, epoch: int, progress: bool) -> Accuracy:
        accuracy = Accuracy.from_sums(_over_processes(evaluation_sums(self.evaluated, loader, self.device, progress)))
        _require_finite(accuracy.loss, f"the validation loss after epoch {epoch}")
        return accuracy

    def state(self) -> dict[str, Any]:
        """All that the next epoch depends on; the weights on the CPU."""
        return {
            "model": _on_cpu(self.model),
            "ema": None if self.ema is None else _on_cpu(self.ema.module),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "steps": self.steps,
        }

    def resume(self, file: Path, fingerprint: str) -> list[dict[str, float]]:
        """Goes back to the state in a resume file, if there is one of this training; gives its history."""
        if not file.exists():
            return []
        saved = load(file, "training")
        if saved["fingerprint"] != fingerprint:
            logger.info("%s: belongs to another training; starting anew", file)
            return []
        self.model.load_state_dict(saved["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(saved["ema"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        self.steps = saved["steps"]
        self.schedule.step_update(self.steps)
        logger.info("%s: resuming after epoch %d", file, len(saved["history"]))
        return list(saved["history"])

    def _autocast(self) -> Any:
        if self.recipe.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self.recipe.precision))

    def _freeze_pruned(self) -> None:
        """With gradient zero, pruned weights have no part in the clipped norm, no momentum, and stay exactly zero."""
        gradients = {name: weight.grad for name, weight in self.model.named_parameters() if weight.grad is not None}
        zero_pruned(gradients, self.expanded_masks)


def learning_rate_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int) -> CosineLRScheduler:
    r"""Linear warm-up to the peak, then half a cosine down to the minimum; a value for every optimiser step.

    With w steps of warm-up, T in all, and the peak and minimum of the recipe, step t = 0, 1, ... uses
    min + (peak - min) t / w for t < w, else min + (peak - min) (1 + cos(pi (t - w) / (T - w))) / 2.
    """
    steps = recipe.epochs * steps_per_epoch
    warmup_steps = min(round(recipe.warmup_epochs * steps_per_epoch), steps - 1)
    return CosineLRScheduler(
        optimizer,
        t_initial=steps - warmup_steps,
        lr_min=recipe.min_learning_rate,
        warmup_t=warmup_steps,
        warmup_lr_init=recipe.min_learning_rate,
        warmup_prefix=True,
        t_in_epochs=False,
    )


class BatchAugmentation:
    """Random erasing, then mixup or cutmix, of whole batches where they lie, and label smoothing.

    Args:
        recipe: Its ``random_erasing``, ``mixup``, ``cutmix`` and ``label_smoothing``.
        classes: K.
        device: Of the batches.
    """

    def __init__(self, recipe: Recipe, classes: int, device: torch.device) -> None:
        self.classes, self.smoothing = classes, recipe.label_smoothing
        self.erase = self.mixup = None
        if recipe.random_erasing:
            self.erase = RandomErasing(recipe.random_erasing, mode="pixel", device=device)
        if recipe.mixup or recipe.cutmix:
            self.mixup = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=self.smoothing, num_classes=classes)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) and labels (N,) to new images and targets: probabilities (N, K), float32."""
        if self.erase or self.mixup:
            images = images.clone()  # timm's parts write in place, and the loader may keep its tensors
        if self.erase:
            self.erase(images)
        targets = mixup_target(labels, self.classes, smoothing=self.smoothing)
        if self.mixup:
            even = len(images) // 2 * 2  # images are mixed in pairs; the last of an odd batch stays as it is
            _, targets[:even] = self.mixup(images[:even], labels[:even])
        return images, targets


def _seed(seed: int, epoch: int, rank: int) -> None:
    """Gives every generator a state that depends on nothing else, so that an epoch can be repeated alone."""
    for_python, for_numpy, for_torch = np.random.SeedSequence((seed, epoch, rank)).generate_state(3).tolist()
    random.seed(for_python)
    np.random.seed(for_numpy)  # noqa: NPY002  timm's mixup draws from it
    torch.manual_seed(for_torch)


def _over_processes(sums: Tensor) -> Tensor:
    """The sums over all processes."""
    if distributed.is_initialized():
        distributed.all_reduce(sums)
    return sums


def _on_cpu(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in model.state_dict().items()}


def _require_finite(value: float, what: str) -> None:
    if not np.isfinite(value):
        raise LpvitError(f"recipe: {what} is {value}; lower 'learning_rate', or use 'precision: float32'")
