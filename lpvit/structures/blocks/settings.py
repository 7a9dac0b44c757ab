"""Settings of blocks."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from lpvit.structures.blocks.distortions import Distortion
from lpvit.structures.blocks.saliencies import Saliency
from lpvit.structures.blocks.statistics import Statistic
from lpvit.structures.settings import Basis, StructureSettings, freedoms_of


class Blocks(StructureSettings):
    """Blocks of the prunable layers: how they are scored and how the distortion of pruning them is measured."""

    moved_keys: ClassVar = dict.fromkeys(("order", "form", "correction_images"), "distortion")

    rounds: ClassVar = 4
    compress_keys: ClassVar = ("block_shape",)

    structure: Literal["blocks"] = Field("blocks", description="what is removed")
    block_shape: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] = Field(
        description="rows (output features) and columns (input features) of a block"
    )
    basis: Basis = Field(
        "given",
        description="weights as they are, or the same function in aligned bases, where few blocks matter: all freedoms "
        "of the model (`aligned`) or a list of them (`residual`, `values`, `queries`, `hidden`, `centre`)",
    )
    saliency: Annotated[Saliency, Saliency.registry] = Field(
        "taylor", validate_default=True, description="score of a block; the lowest are pruned first"
    )
    distortion: Annotated[Distortion, Distortion.registry] = Field(
        "taylor", validate_default=True, description="curve of a layer"
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

    @model_validator(mode="after")
    def _probes_are_used(self) -> "Blocks":
        if not self.probes_used:
            self.without("probes", because="is for 'gauss_newton', as saliency or as distortion")
        return self

    @property
    def timed_shapes(self) -> tuple[tuple[int, int], ...]:
        return (self.block_shape,)

    @property
    def freedoms(self) -> tuple[str, ...]:
        return freedoms_of(self.basis)

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """The statistics that the saliency or the distortion needs, with the values of their keys."""
        names = {*self.saliency.needs, *self.distortion.needs} - {"weight_sums"}
        kinds = [Statistic.registry[name] for name in ("weight_sums", *sorted(names))]
        keys = type(self).model_fields
        return tuple(kind(**{key: getattr(self, key) for key in kind.model_fields if key in keys}) for kind in kinds)

    @property
    def probes_used(self) -> int:
        """`probes` where the saliency or the distortion needs block products, else 0."""
        return self.probes if any(each.name == "block_products" for each in self.statistics) else 0

    @property
    def distortion_unit(self) -> str:
        return self.distortion.unit

    @property
    def measures_images(self) -> bool:
        """Whether curves need another pass over the calibration images."""
        return self.distortion.measures_images

    @property
    def statistics_needed(self) -> dict[str, Any]:
        """The settings that the statistics of the layers depend on."""
        return {
            "block_shape": list(self.block_shape),
            "layers": list(self.layers),
            "statistics": [each.model_dump(mode="json") for each in self.statistics],
        }
