"""Mean squared block product, which predicts the distortion of zeroing the block alone."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def needs() -> set[str]:
    return {"block_products"}


def saliency(tables: "dict[str, Tensor]") -> "Tensor":
    from lpvit.structures.blocks.statistics import mean_squared_products

    return mean_squared_products(tables["block_products"]).view_as(tables["weights"])
