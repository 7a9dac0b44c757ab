from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from lpvit.structures.blocks.saliencies import Saliency

if TYPE_CHECKING:
    from torch import Tensor


class L1Saliency(Saliency):
    """Mean of abs(w) over the weights of a block."""

    name: Literal["l1"] = "l1"

    def scores(self, tables: "Mapping[str, Tensor]") -> "Tensor":
        return tables["absolute_weight_sum"] / tables["weights"]
