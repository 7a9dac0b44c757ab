"""Settings of width."""

from typing import Literal

from pydantic import Field

from lpvit.allocation.settings import Budget
from lpvit.structures.settings import StructureSettings

TAKEN = ("macs", "reconstruction")


class Width(StructureSettings):
    """The whole model made narrower by Torch-Pruning and dense as before; ViT and DeiT."""

    structure: Literal["width"] = Field("width", description="what is removed")

    def require_budget(self, budget: Budget) -> None:
        defaults = Budget(macs=1)
        for name in Budget.model_fields:
            if name not in TAKEN and getattr(budget, name) != getattr(defaults, name):
                raise ValueError(f"structure 'width' takes a budget of 'macs' and 'reconstruction', not '{name}'")
