"""Distortion from block products.

R, C = rows and columns of a grid of blocks; B = R * C; S = samples of the block products.
"""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from lpvit.structures.blocks.distortions import Distortion

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from lpvit.structures.blocks.rate_distortion import CurveInputs

CUMULATIVE_NUMBERS = 2**18  # of cumulative sums in memory at once: 2 MiB in float64, to fit the cache


class GaussNewtonDistortion(Distortion):
    """Predicted from the gradients of every image."""

    unit: ClassVar = "logit² per image"
    needs: ClassVar = ("block_products",)

    name: Literal["gauss_newton"] = "gauss_newton"
    form: Literal["cumulative", "diagonal"] = Field(
        "cumulative", description="with or without the interaction of blocks"
    )
    correction_images: int = Field(
        0,
        ge=0,
        description="images on which predicted curves are corrected for the finite size of the change; 0 is off",
    )

    @property
    def measures_images(self) -> bool:
        return self.correction_images > 0

    def curves(self, inputs: "CurveInputs") -> "pd.DataFrame":
        from lpvit.structures.blocks.correction import corrected_curves

        predicted = inputs.predicted(
            lambda tables, ranks: gauss_newton_distortion(tables["block_products"], ranks, self.form)
        )
        if self.correction_images == 0:
            return predicted
        return corrected_curves(predicted, inputs.measured_model(self.correction_images), inputs.blocks)


def gauss_newton_distortion(
    block_products: "Tensor", ranks: "Tensor", form: Literal["cumulative", "diagonal"]
) -> "Tensor":
    r"""Distortion of zeroing the first n blocks of the pruning order, for every n, to first order in the weights.

    With c the block products of a sample (`lpvit.structures.blocks.products`) and the mean over the S samples,

    .. math::
        D_{cumulative}(n) = E \Big( \sum_{b \le n} c_b \Big)^2, \qquad D_{diagonal}(n) = \sum_{b \le n} E \, c_b^2.

    The first is an unbiased estimate of the linearised change of the logits. The second omits the products of
    different blocks, and with them most of the noise of few samples.

    Args:
        block_products: c, (S, B).
        ranks: Position of every block in the pruning order, (R, C).
        form: Which of the two.

    Returns:
        Shape (B + 1,), float64, in squared logits per image; 0 where nothing is pruned.
    """
    import torch
    from torch import nn

    from lpvit.structures.blocks.statistics.block_products import mean_squared_products

    pruned_first = ranks.flatten().argsort()
    if form == "diagonal":
        return nn.functional.pad(mean_squared_products(block_products)[pruned_first].cumsum(dim=0), (1, 0))
    distortion = torch.zeros(len(pruned_first) + 1, dtype=torch.float64)
    for samples in torch.split(block_products, max(1, CUMULATIVE_NUMBERS // len(pruned_first))):
        sums = samples.T[pruned_first].double()
        torch.cumsum(sums, dim=0, out=sums)
        distortion[1:] += torch.linalg.vector_norm(sums, dim=1).square_()
    return distortion / len(block_products)
