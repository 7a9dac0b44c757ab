"""Settings of budgets."""

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
    """Cost that the pruned model may have, and how it is allocated."""

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
        None, description="`latency.parquet` of the target machine (`latency`); null measures it on this one"
    )
    structure: Literal["blocks", "width"] = Field(
        "blocks",
        description="what is removed: `blocks` of the prunable layers, or `width`: a narrower dense model by "
        "Torch-Pruning (takes `macs` and a reconstruction; ViT and DeiT)",
    )
    allocator: str = Field("lagrangian", description="rule that allocates a sparsity to every layer")
    min_keep_ratio: Share = Field(0.05, description="share of the blocks of every layer that is always kept")
    reconstruction: Literal["none", "least_squares"] = Field(
        "none",
        description="remaining weights: unchanged, or refitted layer by layer to the dense outputs on the calibration "
        "images",
    )
    steps: int = Field(
        1, gt=0, description="pruning rounds, each with curves of the reconstructed model of the last one"
    )

    @property
    def on_the_way(self) -> list["Budget"]:
        """The budgets of all rounds but the last: every round keeps the same share of what the one before kept."""

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
        """Quantity -> target, for the one or two given."""
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
                f"sparsity: {self.sparsity:g} is impossible while min_keep_ratio {self.min_keep_ratio:g} is always kept"
            )
        return self
