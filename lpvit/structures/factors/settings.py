"""Settings of low-rank factors. Imports no torch."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from lpvit.allocation.settings import FACTORS
from lpvit.structures.settings import StructureSettings

if TYPE_CHECKING:
    from lpvit.allocation.settings import Budget

Form = Literal["plain", "pivoted"]
Metric = Literal["two_sided", "activations", "fisher", "weights"]


class Factors(StructureSettings):
    """Low-rank factors: a layer becomes two smaller ones, `W ~ B A`."""

    units: ClassVar = "ranks"
    compresses_by_statistics: ClassVar = True
    compress_keys: ClassVar = ("rank_multiple", "form", "metric", "refine_steps")
    after_curves: ClassVar = ("refine_steps",)

    structure: Literal["factors"] = Field("factors", description="what is removed")
    rank_multiple: int = Field(8, gt=0, description="ranks are multiples of it; 64 suits a GPU")
    form: Form = Field(
        "plain",
        description="`plain`: two products, r (I + O) multiply-adds; `pivoted`: r outputs as they are and the others "
        "from them, r (I + O - r), whose outputs are then put in order",
    )
    metric: Metric = Field(
        "two_sided",
        description="what a truncation keeps: by covariance of the inputs and sensitivity of the logits; by the inputs "
        "alone (AAFM); by rows weighted with their sensitivity (FWSVD); or plain singular values of the weights",
    )
    refine_steps: int = Field(
        0,
        ge=0,
        description="gradient steps of 32 images on all factors at once, towards the dense model's logits and the "
        "outputs of its transformer blocks; 0 is none",
    )
    probes: int = Field(2, ge=1, le=8, description="backward passes per image")
    layers: tuple[str, ...] = Field(
        ("qkv", "proj", "fc1", "fc2"),
        min_length=1,
        description="layers: `qkv`, `proj`, `fc1`, `fc2`, and on request `patch_embed`, `head`, `reduction`",
    )

    @property
    def timed_shapes(self) -> tuple[tuple[int, int], ...]:
        return (FACTORS,)

    @property
    def distortion_unit(self) -> str:
        return "logit² per image"

    @property
    def measures_images(self) -> bool:
        return True

    @property
    def statistics_needed(self) -> dict[str, Any]:
        """The settings that the moments of the layers depend on."""
        return {"layers": list(self.layers), "probes": self.probes, "weighted": self.metric == "two_sided"}

    def require_budget(self, budget: "Budget") -> None:
        if budget.steps > 1:
            raise ValueError(f"structure 'factors' takes one round, found steps {budget.steps}; leave 'steps' out")
        if not budget.refits:
            self.without("refine_steps", because="refines what 'reconstruction: least_squares' has refitted")
        if budget.latency is not None and self.form == "pivoted":
            raise ValueError("latency: only plain factors are timed; use 'form: plain', or a budget of 'macs'")
