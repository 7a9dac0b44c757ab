from collections.abc import Sequence
from typing import ClassVar, Literal

from lpvit.allocation.priority import PriorityAllocator, blocks_always_kept, proportional_priority
from lpvit.allocation.problem import Floats, Layer, Requirement

LAST_KEEP_RATIO = 0.2


class UniformPlus(PriorityAllocator):
    """`uniform` with two floors: the first layer stays dense and the last keeps a fifth.

    Gale et al., 2019, The State of Sparsity, section 4. Here these are the first and the last *prunable* layer.
    """

    floors: ClassVar = ("the first layer dense", f"{LAST_KEEP_RATIO:g} of the last one kept")

    name: Literal["uniform_plus"] = "uniform_plus"

    def priorities(self, layers: Sequence[Layer], _: Requirement) -> list[Floats]:
        return [proportional_priority(layer, density=1.0) for layer in layers]

    def raise_floors(self, floors: Sequence[int], blocks: Sequence[int]) -> list[int]:
        last = max(floors[-1], blocks_always_kept(blocks[-1], LAST_KEEP_RATIO))
        return [blocks[0], *floors[1:-1], last][: len(blocks)]
