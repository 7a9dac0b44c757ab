"""Mean of abs(w g) over the weights of a block (LPViT), g their averaged gradients."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def needs() -> set[str]:
    return {"averaged_gradients"}


def saliency(tables: "dict[str, Tensor]") -> "Tensor":
    return tables["absolute_product_sum"] / tables["weights"]
