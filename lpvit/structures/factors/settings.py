"""Settings of low-rank factors. Imports no torch."""

from typing import Literal

from pydantic import Field

from lpvit.settings import Section
from lpvit.structures.factors.ranks import Form

Metric = Literal["two_sided", "activations", "fisher", "weights"]


class Factors(Section):
    """How layers become two thinner ones."""

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
    refit: Literal["none", "reduced_rank_regression"] = Field(
        "reduced_rank_regression",
        description="factors as truncated, or fitted layer by layer to the dense outputs on the calibration images",
    )
    refine_steps: int = Field(
        0, ge=0, description="gradient steps on each transformer block towards the dense one's outputs; 0 is none"
    )
    probes: int = Field(2, ge=1, le=8, description="backward passes per image")
    layers: tuple[str, ...] = Field(
        ("qkv", "proj", "fc1", "fc2"),
        min_length=1,
        description="layers: `qkv`, `proj`, `fc1`, `fc2`, and on request `patch_embed`, `head`, `reduction`",
    )
