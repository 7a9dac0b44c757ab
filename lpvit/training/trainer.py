"""Training state of one process: model, optimiser, schedule, averaged weights.

N = images of a batch; K = classes.
"""

import logging
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lpvit.data.loading import Loader
from lpvit.errors import LpvitError
from lpvit.precisions import dtype_of
from lpvit.progress import bar
from lpvit.schemes.scheme import anneal
from lpvit.structures.blocks.grid import KeepMasks
from lpvit.structures.blocks.masks import expand_keep_masks, verify_pruned, zero_pruned
from lpvit.training.augmentation import BatchAugmentation
from lpvit.training.block_outputs import BlockDistillation
from lpvit.training.evaluation import over_processes
from lpvit.training.gradual import GradualPruning
from lpvit.training.job import Training
from lpvit.training.progress import TrainingProgress
from lpvit.training.saved import Saved, require_fitting
from lpvit.training.settings import Recipe
from lpvit.training.tasks.own import on_device
from lpvit.training.tasks.task import Score

_logger = logging.getLogger(__name__)


class Trainer:
    """A model with its optimiser, schedule and averaged weights."""

    def __init__(self, job: Training, device: torch.device, steps_per_epoch: int, processes: int) -> None:
        recipe = job.recipe
        self.recipe, self.device = recipe, device
        self.model = job.model.to(device)
        _require_trainable(self.model)
        self.total_steps, self.steps = recipe.epochs * steps_per_epoch, 0
        self.gradual: GradualPruning | None = None
        self.block_shape = job.block_shape
        if recipe.pruned_over and job.keep_masks:
            steps = min(round(recipe.pruned_over * self.total_steps), self.total_steps - 1)  # the last has all masks
            self.gradual = GradualPruning(self.model, job.keep_masks, job.block_shape, steps)
        self.ema: ModelEmaV3 | None = None
        self._take_masks(self.gradual.keep_masks(0) if self.gradual else job.keep_masks)
        self.task = job.task
        self.loss = self.task.criterion(self.model, recipe, job.teacher).to(device)
        if recipe.distillation_blocks:
            self.loss = BlockDistillation(self.model, self.loss, recipe.distillation_blocks)
        if recipe.ema_decay is not None:
            self.ema = ModelEmaV3(self.model, decay=recipe.ema_decay)
        self.optimizer = create_optimizer_v2(
            self.model, "adamw", lr=recipe.learning_rate * recipe.learning_rate_scale, weight_decay=recipe.weight_decay
        )
        self.schedule = learning_rate_schedule(self.optimizer, recipe, steps_per_epoch)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
        self.augment = BatchAugmentation(recipe, self.task.classes(self.model), device)
        self.network: nn.Module = self.model
        if processes > 1:
            self.network = DistributedDataParallel(self.model, [device] if device.type == "cuda" else None)

    @property
    def learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def evaluated(self) -> nn.Module:
        """The model to evaluate: the averaged one if there is one."""
        return self.model if self.ema is None else self.ema.module

    def train_epoch(self, loader: Loader, epoch: int, progress: TrainingProgress, shown: bool) -> float:
        """One pass over the training split, or over the rest of it after resuming.

        Returns:
            Mean loss over the images of all processes, in nat.
        """
        self.network.train()
        title = f"epoch {epoch}/{self.recipe.epochs}"
        steps = bar(loader, title, "batch", leave=False, shown=shown)
        for step, (images, labels) in enumerate(steps, start=1):
            if step <= progress.steps_done:  # done before the run was interrupted
                continue
            loss = self.step(*self.augment(images.to(self.device), on_device(labels, self.device)))
            _require_finite(loss, f"the loss in epoch {epoch}, step {step}")
            progress.end_step(loss, len(images), self)
            steps.set_postfix(loss=f"{loss:.3f}", refresh=False)
        total, count = over_processes(torch.tensor(progress.sums, dtype=torch.float64, device=self.device)).tolist()
        for model in {self.model, self.evaluated}:
            verify_pruned(model.state_dict(), self.expanded_masks)
        return float(total / count)

    def step(self, images: Tensor, targets: Any) -> float:
        """One update of the weights; returns the loss before it. A loss that is not finite updates nothing."""
        anneal(self.model, self.steps / self.total_steps)
        if self.gradual is not None and self.gradual.is_due(self.steps):
            self._take_masks(self.gradual.keep_masks(self.steps))
        self.optimizer.zero_grad()
        value = self._backward(images, targets)
        if not np.isfinite(value):
            return value
        self.scaler.unscale_(self.optimizer)
        self._freeze_pruned()
        if self.recipe.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.gradual is not None:  # pruned weights still have momentum
            zero_pruned(self.model.state_dict(), self.expanded_masks)
        if self.ema is not None:
            self.ema.update(self.model)
        self.steps += 1
        self.schedule.step_update(self.steps)
        return value

    def _backward(self, images: Tensor, targets: Any) -> float:
        """Accumulates the gradients of a batch by micro-batches, reduces them with the last; returns the loss."""
        value = 0.0
        parts = [(images, targets)]
        if self.recipe.accumulation > 1:
            parts = list(zip(*(batch.chunk(self.recipe.accumulation) for batch in (images, targets)), strict=True))
        for number, (some_images, some_targets) in enumerate(parts, start=1):
            waits = number < len(parts) and isinstance(self.network, DistributedDataParallel)
            with self.network.no_sync() if waits else nullcontext():  # type: ignore[operator]
                with self._autocast():
                    loss = self.loss(some_images, self.network(some_images), some_targets)
                loss = loss * (len(some_images) / len(images))
                self.scaler.scale(loss).backward()
            value += float(loss.detach())
        return value

    def validate(self, loader: Loader, epoch: int, shown: bool) -> Score:
        score = self.task.measure(self.evaluated, loader, self.device, shown)
        _require_finite(score.loss, f"the validation loss after epoch {epoch}")
        return score

    def state(self) -> dict[str, Any]:
        """Everything that the next epoch depends on; the weights on the CPU."""
        return {
            "model": _on_cpu(self.model),
            "ema": None if self.ema is None else _on_cpu(self.ema.module),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "steps": self.steps,
            "keep_masks": dict(self.keep_masks),
        }

    def resume(self, saved: Saved) -> None:
        """Restores the result of `state`."""
        self.model.load_state_dict(saved.model)
        if self.ema is not None:
            self.ema.module.load_state_dict(saved.ema or {})
        require_fitting(self.optimizer, saved.optimizer)
        self.optimizer.load_state_dict(saved.optimizer)
        self.scaler.load_state_dict(saved.scaler)
        self._take_masks(saved.keep_masks)
        self.steps = saved.steps
        self.schedule.step_update(self.steps)

    def _autocast(self) -> Any:
        if self.recipe.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype_of(self.recipe.precision))

    def _take_masks(self, keep_masks: KeepMasks) -> None:
        """Sets all other weights to exactly zero, from now on, also in the averaged model."""
        self.keep_masks = keep_masks
        self.expanded_masks = expand_keep_masks(self.model, keep_masks, self.block_shape)
        for model in {self.model, self.evaluated}:
            zero_pruned(model.state_dict(), self.expanded_masks)

    def _freeze_pruned(self) -> None:
        """With zero gradient, pruned weights do not affect the clipped norm, get no momentum, and stay exactly zero."""
        gradients = {name: weight.grad for name, weight in self.model.named_parameters() if weight.grad is not None}
        zero_pruned(gradients, {name: mask for name, mask in self.expanded_masks.items() if name in gradients})


def learning_rate_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int) -> CosineLRScheduler:
    r"""Linear warm-up to the peak, then half a cosine down to the minimum; a value for every optimiser step.

    With w steps of warm-up, T steps in total, and the peak and minimum of the recipe, step t = 0, 1, ... uses
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


def _require_trainable(model: nn.Module) -> None:
    """Says what trains, where something does not.

    Raises:
        LpvitError: Nothing does.
    """
    trained = {name: weight.requires_grad for name, weight in model.named_parameters()}
    if not any(trained.values()):
        raise LpvitError("model: all its parameters are frozen, so nothing trains; model.requires_grad_(True)")
    if not all(trained.values()):
        frozen = [name for name, asked in trained.items() if not asked]
        _logger.info("%d of %d parameters are frozen, such as '%s'", len(frozen), len(trained), frozen[0])


def _on_cpu(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in model.state_dict().items()}


def _require_finite(value: float, what: str) -> None:
    if not np.isfinite(value):
        raise LpvitError(f"recipe: {what} is {value}; lower 'learning_rate', or use 'precision: float32'")
