"""Agreement of a model with a reference: of features, dense outputs or logits, without labels.

N = images; T = tokens or places of a tensor, one for a vector; D = its channels.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lpvit.errors import LpvitError
from lpvit.models.heads import is_classifier
from lpvit.models.outputs import Reading, named_tensors, reading_of
from lpvit.progress import bar
from lpvit.training.evaluation import over_processes
from lpvit.training.loss import Teacher

Kind = Literal["squared", "cosine"]


@dataclass(frozen=True)
class Agreement:
    """How near the outputs of a model are to those of a reference on the same images.

    Attributes:
        images: Images evaluated.
        cosine: Of the outputs, at every token of dense ones; the mean.
        relative_error: Squared distance over the squared norm of the reference; the mean over the images.
        same_class: Images with the largest logit at the same class, in %; None if the outputs are not logits.
    """

    main: ClassVar[str] = "cosine"
    images: int
    cosine: float
    relative_error: float
    same_class: float | None

    @property
    def loss(self) -> float:
        """The relative error."""
        return self.relative_error

    def __str__(self) -> str:
        return f"cosine {self.cosine:.4f} with the reference"


class FeatureLoss(nn.Module):
    """The distance from a teacher's outputs, the mean over a batch and over the tensors that count.

    Args:
        student: Says which tensors count (`lpvit.models.outputs.Reading`).
        teacher: Frozen here.
        kind: Relative squared error, or 1 - cosine, of every token.

    Raises:
        LpvitError: The teacher gives other outputs than the student.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module | None, kind: Kind = "squared") -> None:
        super().__init__()
        if teacher is None:
            raise ValueError("distillation 'features' needs a teacher")
        self.teacher, self.kind = Teacher(student, teacher, "outputs"), kind
        self.reading, self.channels_last = reading_of(student), has_channels_last(student)

    def forward(self, images: Tensor, output: Any, _: Any) -> Tensor:
        """Of images (N, C, H, W) and what the student returned for them; labels are not looked at."""
        pairs = list(token_pairs(output, self.teacher(images), self.reading, self.channels_last))
        distance = relative_errors if self.kind == "squared" else lambda *pair: 1 - cosines(*pair)
        return torch.stack([distance(found, wanted).mean() for found, wanted in pairs]).mean()


@torch.inference_mode()
def agreement(
    model: nn.Module,
    reference: nn.Module,
    loader: Iterable[tuple[Tensor, Any]],
    device: torch.device | str,
    shown: bool = True,
) -> Agreement:
    """Compares two models on the images of a loader, which may be the shard of one process.

    Args:
        model: Moved to the device and left in evaluation mode.
        reference: Likewise; takes the same images.
        loader: Batches that begin with images (N, C, H, W).
        device: Where to compute.
        shown: Show a bar.

    Raises:
        LpvitError: There is no image, the outputs differ in shape, or are not finite.
    """
    dtype = next((weight.dtype for weight in model.to(device).eval().parameters()), None)
    dtype_of_reference = next((weight.dtype for weight in reference.to(device).eval().parameters()), None)
    reading, channels_last = reading_of(model), has_channels_last(model)
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    for images, *_ in bar(loader, "evaluation", "batch", leave=False, shown=shown):
        found = model(images.to(device=device, dtype=dtype))
        wanted = reference(images.to(device=device, dtype=dtype_of_reference))
        pairs = list(token_pairs(found, wanted, reading, channels_last))
        cosine = torch.stack([cosines(*pair) for pair in pairs]).mean(dim=0).sum()
        error = torch.stack([relative_errors(*pair) for pair in pairs]).mean(dim=0).sum()
        same = (reading(found).argmax(dim=1) == reading(wanted).argmax(dim=1)).sum()
        sums += torch.stack([cosine.new_tensor(len(images)), cosine, error, same])
    count, cosine_sum, errors, same_classes = over_processes(sums).tolist()
    if not count:
        raise LpvitError("evaluation: there are no images")
    if not torch.isfinite(sums).all():
        raise LpvitError("evaluation: outputs are NaN or infinite; check weights, and mean and std of the images")
    share = 100 * same_classes / count if is_classifier(reference) else None
    return Agreement(int(count), cosine_sum / count, errors / count, share)


def token_pairs(found: Any, wanted: Any, reading: Reading, channels_last: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """The tensors that count of two outputs, (N, T, D) each, float32.

    Raises:
        LpvitError: They differ in shape.
    """
    ours, theirs = (named_tensors(output, reading.output) for output in (found, wanted))
    shapes, others = ({name: tuple(each.shape) for name, each in tensors.items()} for tensors in (ours, theirs))
    if shapes != others:
        raise LpvitError(f"reference: gives outputs of {others}, the model of {shapes}; give the dense model")
    for name, tensor in ours.items():
        yield _tokens(tensor, channels_last), _tokens(theirs[name], channels_last)


def cosines(found: Tensor, wanted: Tensor) -> Tensor:
    """Cosine of the tokens (N, T, D) of two models; the mean over the tokens of an image, (N,)."""
    return functional.cosine_similarity(found, wanted, dim=-1).mean(dim=1)


def relative_errors(found: Tensor, wanted: Tensor) -> Tensor:
    """||found - wanted||^2 / ||wanted||^2 of the tokens (N, T, D) of every image, (N,)."""
    energies = wanted.square().sum(dim=(1, 2)).clamp_min(torch.finfo(wanted.dtype).tiny)
    return (found - wanted).square().sum(dim=(1, 2)) / energies


def has_channels_last(model: nn.Module) -> bool:
    """Whether the maps that a model of timm gives are (N, H, W, D)."""
    found = getattr(model, "output_fmt", None)
    return getattr(found, "value", found) == "NHWC"


def _tokens(tensor: Tensor, channels_last: bool) -> Tensor:
    """Vectors, tokens or maps as (N, T, D)."""
    tensor = tensor.float()
    if tensor.dim() == 4:
        return tensor.flatten(1, 2) if channels_last else tensor.flatten(2).mT
    return tensor if tensor.dim() == 3 else tensor.flatten(1)[:, None]
