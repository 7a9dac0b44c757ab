"""One threshold on the saliency of blocks over all layers."""

from collections.abc import Sequence

from lpvit.allocation.problem import Floats, Layer, Requirement


def priorities(layers: Sequence[Layer], _: Requirement) -> list[Floats]:
    return [layer.saliency[: layer.limit] for layer in layers]
