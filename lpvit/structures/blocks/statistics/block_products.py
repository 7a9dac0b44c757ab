from typing import TYPE_CHECKING, Literal

from lpvit.structures.blocks.statistics import Statistic

if TYPE_CHECKING:
    from torch import Tensor

    from lpvit.structures.blocks.calibration import StatisticInputs
    from lpvit.structures.calibration import Statistics


class BlockProducts(Statistic):
    """Contribution of every block to random projections of the logits, image by image."""

    name: Literal["block_products"] = "block_products"
    probes: int

    def collect(self, inputs: "StatisticInputs") -> "Statistics":
        from lpvit.structures.blocks.products import block_products

        products = block_products(
            inputs.model, inputs.images, inputs.layers, inputs.block_shape, self.probes, inputs.device
        )
        return {layer: {"block_products": of_layer} for layer, of_layer in products.items()}


def mean_squared_products(block_products: "Tensor") -> "Tensor":
    """Mean over the samples of c^2: (S, B) -> (B,), float64, in squared logits per image."""
    import torch

    norms: Tensor = torch.linalg.vector_norm(block_products, dim=0, dtype=torch.float64)
    return norms.square() / len(block_products)
