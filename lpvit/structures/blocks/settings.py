"""Settings of saliencies and curves."""

from typing import Annotated, Any

from pydantic import Field

from lpvit.settings import Section
from lpvit.variants import chooses, own_settings, variant

SALIENCIES = "lpvit.structures.blocks.saliencies"
DISTORTIONS = "lpvit.structures.blocks.distortions"


@chooses(saliency=SALIENCIES, distortion=DISTORTIONS)
class Pruning(Section):
    """How blocks are scored and how the distortion of pruning them is measured."""

    block_shape: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] = Field(
        description="rows (output features) and columns (input features) of a block"
    )
    saliency: str = Field(
        "taylor",
        description="score of a block: mean |w g| (LPViT), mean |w|, or the predicted distortion of zeroing it alone; "
        "the lowest are pruned first",
    )
    distortion: str = Field(
        "taylor",
        description="curve of a layer: predicted from the averaged gradient, predicted from the gradients of every "
        "image, or measured by masking",
    )
    probes: int = Field(
        2, ge=1, le=8, description="backward passes per image (`gauss_newton`, as saliency or as distortion)"
    )
    points: int = Field(101, ge=2, description="sparsities at which a curve is sampled, evenly from 0 to 1")
    layers: tuple[str, ...] = Field(
        ("qkv", "proj", "fc1", "fc2"),
        min_length=1,
        description="prunable layers: `qkv`, `proj`, `fc1`, `fc2`, and on request `patch_embed`, `head`, `reduction`",
    )
    batch_size: int = Field(64, gt=0, description="images per pass")

    @property
    def probes_used(self) -> int:
        """`probes` where the saliency or the distortion needs block products, else 0."""
        return self.probes if "block_products" in self._needs else 0

    @property
    def averages_gradients(self) -> bool:
        """Whether the saliency or the distortion needs averaged gradients."""
        return "averaged_gradients" in self._needs

    @property
    def measures_images(self) -> bool:
        """Whether curves need another pass over the calibration images."""
        return "images" in self._needs

    @property
    def statistics_needed(self) -> dict[str, Any]:
        """The settings that the statistics of the layers depend on."""
        return {
            "block_shape": list(self.block_shape),
            "layers": list(self.layers),
            "probes": self.probes_used,
            "averaged": self.averages_gradients,
        }

    @property
    def distortion_unit(self) -> str:
        """Unit of the curves; most distortions are only comparable among themselves."""
        return getattr(variant(DISTORTIONS, self.distortion), "UNIT", "arbitrary units")

    @property
    def _needs(self) -> set[str]:
        modules = variant(SALIENCIES, self.saliency), variant(DISTORTIONS, self.distortion)
        return set().union(*(module.needs(*own_settings(module, self)) for module in modules))
