from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from lpvit.structures.blocks.saliencies import Saliency

if TYPE_CHECKING:
    from torch import Tensor


class GaussNewtonSaliency(Saliency):
    """Mean squared block product, which predicts the distortion of zeroing the block alone."""

    needs: ClassVar = ("block_products",)

    name: Literal["gauss_newton"] = "gauss_newton"

    def scores(self, tables: "Mapping[str, Tensor]") -> "Tensor":
        from lpvit.structures.blocks.statistics.block_products import mean_squared_products

        return mean_squared_products(tables["block_products"]).view_as(tables["weights"])
