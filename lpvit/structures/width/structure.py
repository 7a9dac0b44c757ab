"""A narrower dense model as a structure."""

from dataclasses import dataclass

from torch import nn

from lpvit.models.analysis.passes import Batches
from lpvit.structures.structure import Compressed
from lpvit.structures.width.narrowing import narrow, require_width
from lpvit.structures.width.settings import Width


@dataclass(frozen=True)
class WidthStructure:
    """Removes whole features of the model, at one ratio for embedding, heads and MLP."""

    settings: Width | None = None

    def require_reachable(self, model: nn.Module, macs: float) -> None:
        require_width(model, macs)

    def compress_to(self, model: nn.Module, images: Batches, macs: float, *, refit: bool) -> Compressed:
        return Compressed(narrow(model, images, macs, refit).cpu(), {}, None)


STRUCTURE = WidthStructure
