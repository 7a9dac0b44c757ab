from collections.abc import Sequence
from typing import Literal

import numpy as np

from lpvit.allocation.priority import PriorityAllocator
from lpvit.allocation.problem import Floats, Layer, Requirement


class Lamp(PriorityAllocator):
    """One threshold on LAMP scores: squared norm over the sum of those not smaller (Lee et al., 2021, equation 1).

    The scores determine how many blocks of a layer are pruned; the saliency determines which, as for all allocators.
    """

    name: Literal["lamp"] = "lamp"

    def priorities(self, layers: Sequence[Layer], _: Requirement) -> list[Floats]:
        return [_lamp_scores(layer)[: layer.limit] for layer in layers]


def _lamp_scores(layer: Layer) -> Floats:
    norms = np.sort(layer.squared_norm)
    not_smaller = np.cumsum(norms[::-1])[::-1]
    return np.divide(norms, not_smaller, out=np.zeros_like(norms), where=not_smaller > 0)
