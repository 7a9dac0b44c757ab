from collections.abc import Sequence
from typing import Literal

from lpvit.allocation.priority import PriorityAllocator, proportional_priority
from lpvit.allocation.problem import Floats, Layer, Requirement


class Erk(PriorityAllocator):
    """Keep ratio proportional to (O + I) / (O * I), at most 1 (Erdos-Renyi-Kernel; Evci et al., 2020, RigL)."""

    name: Literal["erk"] = "erk"

    def priorities(self, layers: Sequence[Layer], _: Requirement) -> list[Floats]:
        return [
            proportional_priority(
                layer, density=(layer.out_features + layer.in_features) / (layer.out_features * layer.in_features)
            )
            for layer in layers
        ]
