"""Allocators, one file each: the rules that give every layer its sparsity.

A file holds one `Allocator`, or one `lpvit.allocation.priority.PriorityAllocator`, which says in which order blocks go.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lpvit.settings import Section
from lpvit.strategies import Registry

if TYPE_CHECKING:
    from lpvit.allocation.problem import Layer, Requirement


class Allocator(Section):
    """Gives every layer its number of blocks.

    Attributes:
        meets_two_budgets: Whether it takes two requirements.
        floors: What layers keep beyond ``min_keep_ratio``, in words; see `raise_floors`.
    """

    registry: ClassVar = Registry("lpvit.allocation.allocators")
    meets_two_budgets: ClassVar[bool] = True
    floors: ClassVar[tuple[str, ...]] = ()

    name: str

    @abstractmethod
    def blocks_pruned(self, layers: "Sequence[Layer]", requirements: "Sequence[Requirement]") -> list[int]:
        """Blocks pruned in every layer, which together meet one requirement or two.

        Args:
            layers: The prunable ones, in the order of the model.
            requirements: What must go.
        """

    def raise_floors(self, floors: Sequence[int], blocks: Sequence[int]) -> list[int]:
        """Blocks that layers keep at least.

        Args:
            floors: By ``min_keep_ratio``.
            blocks: That every layer has.
        """
        return list(floors)
