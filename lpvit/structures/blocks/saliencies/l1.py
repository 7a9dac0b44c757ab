"""Mean of abs(w) over the weights of a block."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def needs() -> set[str]:
    return set()


def saliency(tables: "dict[str, Tensor]") -> "Tensor":
    return tables["absolute_weight_sum"] / tables["weights"]
