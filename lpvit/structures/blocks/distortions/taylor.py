"""Distortion from averaged gradients.

R, C = rows and columns of a grid of blocks; B = R * C.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from lpvit.structures.blocks.distortions import Distortion

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from lpvit.structures.blocks.rate_distortion import CurveInputs

DAMPING = 1e-7  # eps of the second-order term (LPViT)


class TaylorDistortion(Distortion):
    """Predicted from one averaged gradient, as LPViT does."""

    needs: ClassVar = ("averaged_gradients",)

    name: Literal["taylor"] = "taylor"
    order: Literal[1, 2] = Field(2, description="order of the Taylor expansion")

    def curves(self, inputs: "CurveInputs") -> "pd.DataFrame":
        return inputs.predicted(lambda tables, ranks: taylor_distortion(tables, ranks, self.order))


def taylor_distortion(tables: "Mapping[str, Tensor]", ranks: "Tensor", order: Literal[1, 2]) -> "Tensor":
    r"""LPViT's distortion of zeroing the first n blocks of the pruning order, for every n.

    With w the pruned weights, so that their change is -w, g their averaged gradients, and O I the weights of the layer,

    .. math::
        D_1 = \frac{1}{O I} \sum (g w)^2, \qquad
        D_2 = D_1 + \frac{1}{2} \Delta W^T (g g^T + \epsilon I) \Delta W
            = D_1 + \frac{1}{2} \Big(\sum g w\Big)^2 + \frac{\epsilon}{2} \sum w^2.

    The curvature has rank one, so cumulative sums over the blocks give all n at once.

    Args:
        tables: Statistics of the layer, (R, C) each.
        ranks: Position of every block in the pruning order, (R, C).
        order: 1 for D_1, 2 for D_2.

    Returns:
        Shape (B + 1,), float64; 0 where nothing is pruned.
    """
    from torch import nn

    pruned_first = ranks.flatten().argsort()

    def pruned_sum(name: str) -> "Tensor":
        return nn.functional.pad(tables[name].flatten()[pruned_first].cumsum(dim=0), (1, 0))

    distortion = pruned_sum("squared_product_sum") / tables["weights"].sum()
    if order == 2:
        distortion += pruned_sum("product_sum").square() / 2 + DAMPING / 2 * pruned_sum("squared_weight_sum")
    return distortion
