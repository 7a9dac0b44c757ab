"""Settings of budgets: what may stay, and who decides where."""

import math
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from lpvit.settings import Fraction, Section, Share
from lpvit.variants import chooses, variant

ALLOCATORS = "lpvit.allocation.allocators"
TARGETS = ("macs", "sparsity", "energy", "latency")


@chooses(allocator=ALLOCATORS)
class Budget(Section):
    """What may stay, and who decides where."""

    macs: Fraction | None = Field(
        None,
        description="share of the dense model's MACs in linear layers (patch embedding and heads included) to keep",
    )
    sparsity: Share | None = Field(None, description="share of the prunable weights to remove")
    energy: Fraction | None = Field(
        None,
        description="share of the dense model's modelled energy to keep, in the layers that `macs` counts",
    )
    latency: Fraction | None = Field(
        None, description="share of the prunable layers' dense milliseconds to keep, as measured in `latency_table`"
    )
    latency_table: Path | None = Field(
        None, description="`latency.parquet` of the machine that counts (`latency`); null measures it on this one"
    )
    structure: Literal["blocks", "width"] = Field(
        "blocks",
        description="what is removed: `blocks` of the prunable layers, or `width`: the whole model made narrower by "
        "Torch-Pruning and dense as before (`macs`, and a reconstruction; ViT and DeiT)",
    )
    allocator: str = Field("lagrangian", description="rule that gives every layer its sparsity")
    min_keep_ratio: Share = Field(0.05, description="share of the blocks of every layer that always stays")
    reconstruction: Literal["none", "least_squares"] = Field(
        "none",
        description="weights that stay: as they were, or fitted layer by layer to the dense outputs on the calibration "
        "images",
    )
    steps: int = Field(
        1, gt=0, description="steps to the budget, each with curves of the model that those before left (reconstructed)"
    )

    @property
    def on_the_way(self) -> list["Budget"]:
        """The budgets of all steps but the last: every step keeps the same share of what the one before kept."""

        def target(name: str, last: float, step: int) -> float:
            kept = math.pow(1 - last if name == "sparsity" else last, step / self.steps)
            return 1 - kept if name == "sparsity" else kept

        return [
            self.model_copy(update={name: target(name, last, step) for name, last in self.targets.items()})
            for step in range(1, self.steps)
        ]

    @property
    def refits(self) -> bool:
        """Whether remaining weights are refitted on the calibration images."""
        return self.reconstruction != "none"

    @property
    def targets(self) -> dict[str, float]:
        """Quantity -> target, of the one or two that are given."""
        given = {name: getattr(self, name) for name in TARGETS}
        return {name: target for name, target in given.items() if target is not None}

    @model_validator(mode="after")
    def _keys_fit(self) -> "Budget":
        targets = self.targets
        if not 1 <= len(targets) <= 2:
            raise ValueError("give one of 'macs', 'sparsity', 'energy' and 'latency', or two of them")
        if self.structure == "width":
            defaults = {name: field.default for name, field in type(self).model_fields.items()}
            changed = [name for name, default in defaults.items() if getattr(self, name) != default]
            if others := [name for name in changed if name not in ("structure", "macs", "reconstruction")]:
                raise ValueError(
                    f"structure: 'width' takes 'macs' and 'reconstruction', not '{others[0]}'; leave it out"
                )
        if len(targets) == 2 and not hasattr(variant(ALLOCATORS, self.allocator), "blocks_pruned"):
            raise ValueError(
                f"allocator: '{self.allocator}' meets one budget, found {' and '.join(targets)}; "
                "use 'lagrangian' or 'exact'"
            )
        if self.latency_table is not None and self.latency is None:
            raise ValueError("latency_table: give the table of measured milliseconds together with 'latency'")
        if self.sparsity is not None and self.sparsity + self.min_keep_ratio > 1 + 1e-9:
            raise ValueError(
                f"sparsity: {self.sparsity:g} is impossible while min_keep_ratio {self.min_keep_ratio:g} always stays"
            )
        return self
