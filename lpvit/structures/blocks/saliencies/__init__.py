"""Registry of saliencies, one file each: scores of blocks, of which the lowest are pruned first."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from lpvit.settings import Section
from lpvit.strategies import Registry

if TYPE_CHECKING:
    from torch import Tensor


class Saliency(Section):
    """Scores the blocks of a layer."""

    registry: ClassVar = Registry("lpvit.structures.blocks.saliencies")

    name: str

    @property
    def needs(self) -> frozenset[str]:
        """Data it uses besides sums of weights: ``averaged_gradients`` or ``block_products``."""
        return frozenset()

    @abstractmethod
    def scores(self, tables: "Mapping[str, Tensor]") -> "Tensor":
        """Scores of the blocks of a layer, shape (R, C).

        Args:
            tables: Statistics of the layer (`lpvit.structures.blocks.statistics`), by block.
        """
