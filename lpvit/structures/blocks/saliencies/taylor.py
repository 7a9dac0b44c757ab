from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from lpvit.structures.blocks.saliencies import Saliency

if TYPE_CHECKING:
    from torch import Tensor


class TaylorSaliency(Saliency):
    """Mean of abs(w g) over the weights of a block (LPViT), g their averaged gradients."""

    name: Literal["taylor"] = "taylor"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"averaged_gradients"})

    def scores(self, tables: "Mapping[str, Tensor]") -> "Tensor":
        return tables["absolute_product_sum"] / tables["weights"]
