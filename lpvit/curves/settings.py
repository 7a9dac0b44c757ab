"""Settings of curves: how blocks are scored and how the distortion of pruning them is found."""

from typing import Annotated, Literal

from pydantic import Field

from lpvit.settings import Section


class Pruning(Section):
    """How blocks are scored and how the distortion of pruning them is measured."""

    block_shape: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] = Field(
        description="rows (output features) and columns (input features) of a block"
    )
    saliency: Literal["taylor", "l1", "gauss_newton"] = Field(
        "taylor",
        description="score of a block: mean |w g| (LPViT), mean |w|, or the predicted distortion of zeroing it alone; "
        "the lowest are pruned first",
    )
    distortion: Literal["taylor", "gauss_newton", "empirical"] = Field(
        "taylor",
        description="curve of a layer: predicted from the averaged gradient, predicted from the gradients of every "
        "image, or measured by masking",
    )
    order: Literal[1, 2] = Field(2, description="order of the Taylor expansion (`distortion: taylor`)")
    form: Literal["cumulative", "diagonal"] = Field(
        "cumulative", description="with or without the interaction of blocks (`distortion: gauss_newton`)"
    )
    probes: int = Field(
        2, ge=1, le=8, description="backward passes per image (`gauss_newton`, as saliency or as distortion)"
    )
    correction_images: int = Field(
        0,
        ge=0,
        description="images on which predicted curves are corrected for the finite size of the change "
        "(`distortion: gauss_newton`); 0 is off",
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
        """`probes` where the saliency or the distortion is `gauss_newton`, else 0."""
        return self.probes if "gauss_newton" in (self.saliency, self.distortion) else 0

    @property
    def averages_gradients(self) -> bool:
        """Whether the saliency or the distortion is `taylor`."""
        return "taylor" in (self.saliency, self.distortion)

    @property
    def measures_images(self) -> bool:
        """Whether curves need another look at the calibration images."""
        return self.distortion == "empirical" or (self.distortion == "gauss_newton" and self.correction_images > 0)
