"""The same sparsity in every layer."""

from collections.abc import Sequence

from lpvit.allocation.priority import proportional_priority
from lpvit.allocation.problem import Floats, Layer, Requirement


def priorities(layers: Sequence[Layer], _: Requirement) -> list[Floats]:
    return [proportional_priority(layer, density=1.0) for layer in layers]
