"""Registry of saliencies, one file each: scores of blocks, of which the lowest are pruned first."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from lpvit.settings import Section
from lpvit.strategies import Registry

if TYPE_CHECKING:
    from torch import Tensor


class Saliency(Section):
    """Scores the blocks of a layer.

    Attributes:
        needs: Names of the `lpvit.structures.blocks.statistics` that it reads, besides ``weight_sums``.
    """

    registry: ClassVar = Registry("lpvit.structures.blocks.saliencies")
    needs: ClassVar[tuple[str, ...]] = ()

    name: str

    @abstractmethod
    def scores(self, tables: "Mapping[str, Tensor]") -> "Tensor":
        """Scores of the blocks of a layer, shape (R, C).

        Args:
            tables: Of the statistics of the layer, by name.
        """
