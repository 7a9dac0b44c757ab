"""`uniform` with two floors: the first layer stays dense and the last keeps a fifth.

Gale et al., 2019, The State of Sparsity, section 4. Here these are the first and the last *prunable* layer.
"""

from collections.abc import Sequence

from lpvit.allocation.allocators import uniform
from lpvit.allocation.priority import blocks_always_kept

priorities = uniform.priorities
LAST_KEEP_RATIO = 0.2
FLOORS = ("the first layer dense", f"{LAST_KEEP_RATIO:g} of the last one kept")


def raise_floors(floors: Sequence[int], blocks: Sequence[int]) -> list[int]:
    return [blocks[0], *floors[1:-1], max(floors[-1], blocks_always_kept(blocks[-1], LAST_KEEP_RATIO))][: len(blocks)]
