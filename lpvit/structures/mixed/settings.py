"""Settings of mixed structures. Imports no torch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from lpvit.structures.settings import Basis, StructureSettings, freedoms_of

if TYPE_CHECKING:
    from lpvit.allocation.settings import Budget


class Mixed(StructureSettings):
    """One budget over several structures: each layer stays dense, loses blocks or becomes low-rank factors."""

    units: ClassVar = "blocks or ranks"
    compresses_by_statistics: ClassVar = True
    compress_keys: ClassVar = ("block_shape", "rank_multiple", "form")

    structure: Literal["mixed"] = Field("mixed", description="what is removed")
    block_shape: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] = Field(
        (16, 16), description="rows (output features) and columns (input features) of a block"
    )
    rank_multiple: int = Field(8, gt=0, description="ranks are multiples of it; 64 suits a GPU")
    form: Literal["plain", "pivoted"] = Field("plain", description="form of the factors, as for `factors`")
    basis: Basis = Field(
        "aligned",
        description="weights as they are (`given`), or the same function in aligned bases, where few blocks matter",
    )
    probes: int = Field(2, ge=1, le=8, description="backward passes per image")
    layers: tuple[str, ...] = Field(
        ("qkv", "proj", "fc1", "fc2"),
        min_length=1,
        description="layers: `qkv`, `proj`, `fc1`, `fc2`, and on request `patch_embed`, `head`, `reduction`",
    )

    @property
    def parts(self) -> Mapping[str, StructureSettings]:
        shared = {"probes": self.probes, "layers": self.layers, "batch_size": self.batch_size}
        method = {"saliency": "gauss_newton", "distortion": "gauss_newton"}
        of_factors = {"rank_multiple": self.rank_multiple, "form": self.form}
        known = self.registry
        return {
            "blocks": known["blocks"](block_shape=self.block_shape, **method, **shared),
            "factors": known["factors"](**of_factors, **shared),
        }

    @property
    def timed_shapes(self) -> tuple[tuple[int, int], ...]:
        return tuple(shape for part in self.parts.values() for shape in part.timed_shapes)

    @property
    def freedoms(self) -> tuple[str, ...]:
        return freedoms_of(self.basis)

    @property
    def distortion_unit(self) -> str:
        return "logit² per image"

    @property
    def measures_images(self) -> bool:
        return True

    @property
    def statistics_needed(self) -> dict[str, Any]:
        """The settings that the statistics of each part depend on."""
        return {name: part.statistics_needed for name, part in self.parts.items()}

    def require_budget(self, budget: "Budget") -> None:
        if budget.steps > 1:
            raise ValueError(f"structure 'mixed' takes one round, found steps {budget.steps}; leave 'steps' out")
        if budget.latency is not None and len(budget.targets) > 1:
            raise ValueError("latency: structure 'mixed' takes it alone; leave the other budget out")
        for part in self.parts.values():
            part.require_budget(budget)
