"""Registry of allocators, one file each: rules that allocate a sparsity to every layer.

A file defines one `Allocator`, or one `lpvit.allocation.priority.PriorityAllocator`, which ranks blocks.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lpvit.settings import Section
from lpvit.strategies import Registry

if TYPE_CHECKING:
    from lpvit.allocation.problem import Layer, Requirement


class Allocator(Section):
    """Allocates a number of blocks to every layer.

    Attributes:
        meets_two_budgets: Whether it accepts two requirements.
        floors: Minimum kept beyond ``min_keep_ratio``, as text; see `raise_floors`.
    """

    registry: ClassVar = Registry("lpvit.allocation.allocators")
    meets_two_budgets: ClassVar[bool] = True
    floors: ClassVar[tuple[str, ...]] = ()

    name: str

    @abstractmethod
    def blocks_pruned(self, layers: "Sequence[Layer]", requirements: "Sequence[Requirement]") -> list[int]:
        """Blocks pruned in every layer, which together meet one or two requirements.

        Args:
            layers: Prunable layers, in the order of the model.
            requirements: One budget, or two.
        """

    def raise_floors(self, floors: Sequence[int], blocks: Sequence[int]) -> list[int]:
        """Minimum number of blocks that every layer keeps.

        Args:
            floors: Those of ``min_keep_ratio``.
            blocks: Number of blocks of every layer.
        """
        return list(floors)
