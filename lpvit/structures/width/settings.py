"""Settings of width."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from lpvit.structures.settings import StructureSettings

if TYPE_CHECKING:
    from lpvit.allocation.settings import Budget

TAKEN = ("macs", "reconstruction")


class Width(StructureSettings):
    """A narrower dense model by Torch-Pruning; ViT and DeiT."""

    structure: Literal["width"] = Field("width", description="what is removed")

    def require_budget(self, budget: "Budget") -> None:
        defaults = type(budget)(macs=1)
        for name in type(budget).model_fields:
            if name not in TAKEN and getattr(budget, name) != getattr(defaults, name):
                raise ValueError(f"structure 'width' takes a budget of 'macs' and 'reconstruction', not '{name}'")
