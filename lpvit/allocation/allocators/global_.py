from collections.abc import Sequence
from typing import Literal

from lpvit.allocation.priority import PriorityAllocator
from lpvit.allocation.problem import Floats, Layer, Requirement


class Global(PriorityAllocator):
    """One threshold on the saliency of blocks over all layers."""

    name: Literal["global"] = "global"

    def priorities(self, layers: Sequence[Layer], _: Requirement) -> list[Floats]:
        return [layer.saliency[: layer.limit] for layer in layers]
