"""Whether the outputs of a model are logits of classes, and of how many.

Attributes such as ``num_classes`` stay when a head is replaced; the head itself, or the output, is asked first.
"""

from typing import Any

from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.models.architecture import source_of
from lpvit.models.outputs import named_tensors, reading_of
from lpvit.models.sources.given import Given


def is_classifier(model: nn.Module) -> bool | None:
    """Whether a model is known to have classes (True) or features alone (False); None if it is of no known source."""
    if type(model).__module__.startswith("open_clip."):
        return False
    source = source_of(model)
    if source.num_classes:
        return True
    return None if isinstance(source, Given) or reading_of(model).output is not None else False


def require_classifier(model: nn.Module) -> None:
    """Checks that a model is not known to have no classifier.

    Raises:
        LpvitError: It gives features.
    """
    if is_classifier(model) is False:
        raise _no_logits(type(model).__name__)


class Logits:
    """Reads the logits in what a model returns.

    Args:
        model: Says which output counts (`lpvit.models.outputs.set_output`).
    """

    def __init__(self, model: nn.Module) -> None:
        self.reading, self.name = reading_of(model), type(model).__name__

    def __call__(self, found: Any) -> Tensor:
        """The logits, (N, K).

        Raises:
            LpvitError: It returned features: several tensors, tokens or maps, or one with the name of a feature.
        """
        (name, tensor), *others = named_tensors(found, self.reading.output).items()
        is_feature = self.reading.output is None and name not in ("logits", "output", "0")
        if others or tensor.dim() != 2 or is_feature:
            raise _no_logits(self.name)
        return tensor


def _no_logits(name: str) -> LpvitError:
    return LpvitError(
        f"model: {name} gives features, not logits of classes; lpvit.evaluate(..., reference=dense) compares them with "
        "those of the dense model, lpvit.probe classifies by them"
    )
