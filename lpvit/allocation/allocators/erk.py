"""Keep ratio proportional to (O + I) / (O * I), at most 1 (Erdos-Renyi-Kernel; Evci et al., 2020, RigL)."""

from collections.abc import Sequence

from lpvit.allocation.priority import proportional_priority
from lpvit.allocation.problem import Floats, Layer, Requirement


def priorities(layers: Sequence[Layer], _: Requirement) -> list[Floats]:
    return [
        proportional_priority(
            layer, density=(layer.out_features + layer.in_features) / (layer.out_features * layer.in_features)
        )
        for layer in layers
    ]
