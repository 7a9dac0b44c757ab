from typing import TYPE_CHECKING, Literal

from lpvit.structures.blocks.statistics import Statistic

if TYPE_CHECKING:
    from torch import Tensor

    from lpvit.structures.blocks.calibration import StatisticInputs
    from lpvit.structures.blocks.grid import BlockGrid
    from lpvit.structures.calibration import Statistics


class WeightSums(Statistic):
    """Sums over the weights of every block; always collected."""

    name: Literal["weight_sums"] = "weight_sums"

    def collect(self, inputs: "StatisticInputs") -> "Statistics":
        return {layer: weight_sums(inputs.weight(layer), grid) for layer, grid in inputs.grids.items()}


def weight_sums(weight: "Tensor", grid: "BlockGrid") -> dict[str, "Tensor"]:
    """Sums over the weights w of every block.

    Args:
        weight: (O, I).
        grid: The blocks.

    Returns:
        On the CPU, each (R, C): ``weights``, their number, int64; and in float64 ``absolute_weight_sum``, abs(w), and
        ``squared_weight_sum``, w^2.
    """
    weight = weight.double()
    terms = {"absolute_weight_sum": weight.abs(), "squared_weight_sum": weight.square()}
    return {"weights": grid.sizes()} | {name: grid.reduce(term).cpu() for name, term in terms.items()}
