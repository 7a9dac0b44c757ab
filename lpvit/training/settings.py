"""Settings of a training."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from lpvit.precisions import FLOATING
from lpvit.settings import LocalPath, Section, Share


def _rising(bounds: tuple[float, float]) -> tuple[float, float]:
    if not 0 < bounds[0] <= bounds[1]:
        raise ValueError(f"found {list(bounds)}, expected a positive number and one that is not smaller")
    return bounds


Range = Annotated[tuple[float, float], AfterValidator(_rising)]


class Recipe(Section):
    """Training: from scratch for a dense model, or with fixed masks for a pruned one."""

    epochs: int = Field(gt=0, description="passes over the training split")
    batch_size: int = Field(gt=0, description="images per optimiser step, over all processes")
    accumulation: int = Field(1, gt=0, description="micro-batches per process and optimiser step, to save memory")
    learning_rate: float = Field(gt=0, description="peak learning rate")
    learning_rate_batch_size: int | None = Field(
        None,
        gt=0,
        description="batch size of `learning_rate`, which is scaled in proportion to `batch_size`",
    )
    min_learning_rate: float = Field(1e-6, ge=0, description="learning rate at the end of the cosine")
    warmup_epochs: float = Field(0, ge=0, description="epochs of linear warm-up")
    weight_decay: float = Field(0.05, ge=0, description="AdamW weight decay; not for biases and norms")
    clip_grad_norm: float | None = Field(None, gt=0, description="largest norm of the gradient")
    label_smoothing: Share = Field(0.0, description="share of the target spread over all classes")
    drop_path: Share = Field(
        0.0, description="stochastic depth rate of the last transformer block, rising from 0; 0 keeps the model's own"
    )
    mixup: float = Field(0.0, ge=0, description="alpha of mixup; 0 is off")
    cutmix: float = Field(0.0, ge=0, description="alpha of cutmix; 0 is off")
    crop_scale: Range = Field((0.08, 1.0), description="range of the area of a random crop")
    crop_ratio: Range = Field((3 / 4, 4 / 3), description="range of the aspect ratio of a random crop")
    horizontal_flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    color_jitter: float = Field(0.0, ge=0, description="strength of colour jitter; not with `rand_augment`")
    rand_augment: str | None = Field(None, description="timm's policy string, for example `rand-m9-mstd0.5-inc1`")
    random_erasing: float = Field(0.0, ge=0, le=1, description="probability of erasing a rectangle")
    repeated_augmentation: int = Field(1, gt=0, description="repetitions of an image in an epoch of the same length")
    ema_decay: float | None = Field(None, gt=0, lt=1, description="decay of the averaged weights; null is off")
    choose_by: Share = Field(
        0.0,
        description="share of the training images of every class that is held out to choose the epoch with the best "
        "accuracy on them; 0 keeps the last epoch. The validation split chooses nothing",
    )
    pruned_over: Share = Field(
        0.0,
        description="share of the training during which blocks are pruned by magnitude (gradual magnitude pruning; as "
        "many per layer as the budget allocates); 0 starts from the pruned model",
    )
    distillation: Literal["none", "soft", "hard", "features"] = Field(
        "none",
        description="loss against the teacher; `features`: its outputs alone, logits or features, without labels",
    )
    features_loss: Literal["squared", "cosine"] = Field(
        "squared",
        description="distance of `features`: relative squared error, or 1 - cosine, of every token of dense outputs",
    )
    distillation_blocks: float = Field(
        0.0,
        ge=0,
        description="weight of the relative squared error of the output of every transformer block, in addition to the "
        "loss; with `teacher: dense`",
    )
    teacher: str | None = Field(None, description="`dense` (the model before pruning) or a timm model name")
    teacher_checkpoint: LocalPath | None = Field(None, description="local weights of a timm teacher; else timm's own")
    distillation_alpha: float = Field(0.5, ge=0, le=1, description="share of the distillation loss")
    distillation_temperature: float = Field(1.0, gt=0, description="temperature of soft distillation")
    precision: Literal[FLOATING] = Field(  # type: ignore[valid-type]
        "float32", description="autocast of the forward pass"
    )
    seed: int = Field(0, ge=0, description="seed of data order, augmentation and dropout")

    @property
    def learning_rate_scale(self) -> float:
        """Factor of the peak learning rate (Goyal et al., 2017)."""
        return self.batch_size / (self.learning_rate_batch_size or self.batch_size)

    @model_validator(mode="after")
    def _parts_fit(self) -> "Recipe":
        if (self.distillation == "none") != (self.teacher is None):
            raise ValueError(
                "teacher: give a teacher together with 'distillation: soft', 'hard' or 'features', and only then"
            )
        if self.warmup_epochs and self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs: {self.warmup_epochs:g} leaves nothing of {self.epochs} epochs; lower it")
        if self.rand_augment is not None:
            self.without("color_jitter", because="does nothing with 'rand_augment', as in timm")
        if self.distillation in ("none", "features"):
            because = f"belongs to distillation 'soft' or 'hard', not to '{self.distillation}'"
            self.without("distillation_alpha", because=because)
        if self.distillation == "features":
            self.without("label_smoothing", because="needs labels, which distillation 'features' does not look at")
        else:
            self.without("features_loss", because=f"belongs to distillation 'features', not '{self.distillation}'")
        if self.distillation != "soft":
            self.without(
                "distillation_temperature", because=f"belongs to distillation 'soft', not '{self.distillation}'"
            )
        if self.teacher != "dense":
            self.without("distillation_blocks", because="compares the blocks with those of 'teacher: dense'")
        if self.choose_by and self.pruned_over:
            raise ValueError("choose_by: only the last epoch of 'pruned_over' has all masks; leave one of them out")
        if self.teacher_checkpoint is not None and self.teacher in (None, "dense"):
            raise ValueError("teacher_checkpoint: only a timm teacher takes a checkpoint")
        return self
