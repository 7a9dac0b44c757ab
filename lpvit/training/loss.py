"""The loss of training: cross-entropy, alone or with distillation from a teacher.

After Touvron et al., "Training data-efficient image transformers & distillation through attention" (DeiT), ICML 2021,
section 4. N = images of a batch; K = classes.
"""

from typing import Any, Literal

import torch
from timm.data import resolve_model_data_config
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn
from torch.nn import functional

from lpvit.errors import LpvitError
from lpvit.models.heads import Logits
from lpvit.models.preparation import width_of


class TrainingLoss(nn.Module):
    r"""(1 - alpha) * cross-entropy with the targets + alpha * distillation loss against the teacher.

    A model with two heads gives (class logits, distillation logits): the class head learns the targets, the other the
    teacher. A model with one head learns both with it. Without a teacher only the cross-entropy is used.

    Args:
        student: The model in training, for its normalisation; a two-headed one is set to return both outputs.
        teacher: Frozen here; None without distillation.
        kind: Which distillation loss.
        alpha: Share of the distillation loss.
        temperature: Of soft distillation.

    Raises:
        LpvitError: The teacher has other classes or another number of channels than the student.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        kind: Literal["none", "soft", "hard"] = "none",
        alpha: float = 0.5,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if (teacher is None) != (kind == "none"):
            raise ValueError(f"distillation '{kind}' {'needs a' if teacher is None else 'takes no'} teacher")
        self.kind, self.alpha, self.temperature = kind, alpha, temperature
        self.logits = Logits(student)
        self.teacher = None if teacher is None else Teacher(student, teacher)
        self.two_heads = teacher is not None and isinstance(student, VisionTransformerDistilled)
        if self.two_heads:
            student.set_distilled_training(True)  # type: ignore[operator]

    def forward(self, images: Tensor, output: Any, targets: Tensor) -> Tensor:
        """The mean over a batch, in nat.

        Args:
            images: Input of the student, (N, C, H, W).
            output: Of the student in training mode: logits (N, K), or what they are read from; two if it has two heads.
            targets: Probabilities of the classes, (N, K).
        """
        logits, distilled = output if self.two_heads else (self.logits(output),) * 2
        loss = functional.cross_entropy(logits.float(), targets)
        if self.teacher is None:
            return loss
        opinion = self.teacher.logits(self.teacher(images)).float()
        if self.kind == "soft":
            distillation = soft_distillation_loss(distilled.float(), opinion, self.temperature)
        else:
            distillation = hard_distillation_loss(distilled.float(), opinion)
        return (1 - self.alpha) * loss + self.alpha * distillation


def soft_distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    r"""tau^2 KL(softmax(teacher / tau) || softmax(student / tau)), mean over the images (DeiT, equation 2).

    DeiT's published code divides by the number of classes as well; the paper's equation does not, nor do we.

    Args:
        student: Logits (N, K).
        teacher: Logits (N, K).
        temperature: tau.
    """
    divergence = functional.kl_div(
        functional.log_softmax(student / temperature, dim=1),
        functional.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return divergence * temperature**2


def hard_distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy with the teacher's most likely class, mean over the images (DeiT, equation 3).

    Args:
        student: Logits (N, K).
        teacher: Logits (N, K).
    """
    return functional.cross_entropy(student, teacher.argmax(dim=1))


class Teacher(nn.Module):
    """A frozen model that takes the images of another.

    Args:
        student: Whose images it takes.
        teacher: Frozen here, in evaluation mode.
        what: What a model gives, for the message.

    Raises:
        LpvitError: As `require_fit`.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, what: str = "classes") -> None:
        super().__init__()
        require_fit(student, teacher, what)
        self.model, self.logits = teacher.eval().requires_grad_(False), Logits(teacher)
        self.conversion = InputConversion(resolve_model_data_config(student), resolve_model_data_config(teacher))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Any:
        """What it returns for images (N, C, H, W) in the format of the student."""
        return self.model(self.conversion(images))


class InputConversion(nn.Module):
    """Converts a batch from the input format of one model to that of another: normalisation and size.

    x' = (x * std + mean - mean') / std', then a bicubic resize.

    Args:
        source: timm data config of the first model: ``mean``, ``std``, ``input_size`` (C, H, W).
        target: The same of the second.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, source: dict[str, Any], target: dict[str, Any]) -> None:
        super().__init__()
        mean, std, new_mean, new_std = (
            torch.tensor(config[key], dtype=torch.float64).view(-1, 1, 1)
            for config in (source, target)
            for key in ("mean", "std")
        )
        self.size = tuple(target["input_size"][1:])
        self.same_normalisation = bool((mean == new_mean).all() and (std == new_std).all())
        self.register_buffer("scale", (std / new_std).float())
        self.register_buffer("shift", ((mean - new_mean) / new_std).float())

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) to (N, C, H', W'); the same tensor if the formats are equal."""
        if not self.same_normalisation:
            images = images * self.scale + self.shift
        if tuple(images.shape[-2:]) != self.size:
            images = functional.interpolate(images, self.size, mode="bicubic", antialias=True)
        return images


def require_fit(student: nn.Module, teacher: nn.Module, what: str = "classes") -> None:
    """Checks that a model can learn from a teacher; both may be on the meta device.

    Args:
        student: Learns.
        teacher: With its input size in ``pretrained_cfg``, where timm and lpvit have it.
        what: What a model gives, for the message.

    Raises:
        LpvitError: The teacher has other classes or another number of channels than the student.
    """
    for name, number in (("channels", _channels), (what, width_of)):
        of_student, of_teacher = number(student), number(teacher)
        if of_student != of_teacher:
            raise LpvitError(
                f"recipe: the teacher has {of_teacher} {name}, the model {of_student}; choose a 'teacher' that fits"
            )


def _channels(model: nn.Module) -> int:
    return int(resolve_model_data_config(model)["input_size"][0])
