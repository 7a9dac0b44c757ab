from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from lpvit.structures.blocks.saliencies import Saliency

if TYPE_CHECKING:
    from torch import Tensor


class TaylorSaliency(Saliency):
    """Mean of abs(w g) over the weights of a block (LPViT), g their averaged gradients."""

    needs: ClassVar = ("averaged_gradients",)

    name: Literal["taylor"] = "taylor"

    def scores(self, tables: "Mapping[str, Tensor]") -> "Tensor":
        return tables["absolute_product_sum"] / tables["weights"]
