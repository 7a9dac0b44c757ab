from collections.abc import Sequence
from typing import Literal

from lpvit.allocation.priority import PriorityAllocator, proportional_priority
from lpvit.allocation.problem import Floats, Layer, Requirement


class Uniform(PriorityAllocator):
    """The same sparsity in every layer."""

    name: Literal["uniform"] = "uniform"

    def priorities(self, layers: Sequence[Layer], _: Requirement) -> list[Floats]:
        return [proportional_priority(layer, density=1.0) for layer in layers]
