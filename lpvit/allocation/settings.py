"""Settings of budgets."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from lpvit.allocation.allocators import Allocator
from lpvit.settings import Fraction, LocalPath, Section, Share, with_moved_keys

LATENCY_BATCH_SIZE = 8  # images per pass at which layers are timed
FACTORS = (0, 0)  # in the place of the block shape of a timed layer: low-rank factors
TARGETS = ("macs", "sparsity", "parameters", "bytes", "energy", "latency")
OUTCOMES = ("points_lost", "milliseconds")


class Budget(Section):
    """Cost that the pruned model may have, and how it is allocated."""

    moved_keys: ClassVar = dict.fromkeys(("smoothing", "stencil_step", "power_beta"), "allocator")

    macs: Fraction | None = Field(
        None,
        description="share of the dense model's MACs in linear layers (patch embedding and heads included) to keep",
    )
    sparsity: Share | None = Field(None, description="share of the prunable weights to remove")
    parameters: Fraction | None = Field(
        None, description="share of the dense model's parameters to keep, in the layers that `macs` counts"
    )
    bytes: Fraction | None = Field(
        None,
        description="share of the bytes that these parameters take in a saved model to keep; blocks are stored whole, "
        "also at ragged edges",
    )
    energy: Fraction | None = Field(
        None,
        description="share of the dense model's modelled energy to keep, in the layers that `macs` counts",
    )
    latency: Fraction | None = Field(
        None, description="share of the prunable layers' dense milliseconds to keep, as measured in `latency_table`"
    )
    points_lost: float | None = Field(
        None,
        gt=0,
        lt=100,
        description="points of top-1 accuracy that may be lost before fine-tuning, in place of a share: the model with "
        "the fewest MACs that loses no more on held-out images of the training split",
    )
    milliseconds: float | None = Field(
        None,
        gt=0,
        description="time of the whole model for one image on this machine, in place of a share: the model with the "
        "most MACs that takes no longer",
    )
    held_out: int = Field(
        1000, gt=0, description="images of the training split, apart from those of the calibration (`points_lost`)"
    )
    latency_table: LocalPath | None = Field(
        None, description="`latency.parquet` of the target machine (`latency`); null measures it on this one"
    )
    allocator: Annotated[Allocator, Allocator.registry] = Field(
        "lagrangian", validate_default=True, description="rule that allocates a sparsity to every layer"
    )
    min_keep_ratio: Share = Field(
        0.05, description="share of the blocks of every layer that is always kept; with factors, of its weights"
    )
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

    @property
    def by_outcome(self) -> bool:
        """Whether the share of the MACs is to be found by what it leads to."""
        return self.points_lost is not None or self.milliseconds is not None

    @property
    def outcome(self) -> tuple[str, float]:
        """Name and target of the outcome of a budget that has one."""
        ((name, target),) = ((name, getattr(self, name)) for name in OUTCOMES if getattr(self, name) is not None)
        return name, target

    @property
    def stated(self) -> dict[str, float]:
        """What the budget asks for: its targets, or its outcome."""
        return dict([self.outcome]) if self.by_outcome else self.targets

    def at(self, macs: float) -> "Budget":
        """A budget of a share of the MACs in place of the outcome."""
        return self.model_copy(update={"macs": macs, **dict.fromkeys(OUTCOMES)})

    @model_validator(mode="before")
    @classmethod
    def _structure_has_moved(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and "structure" in values:
            raise ValueError("structure: belongs to the pruning now: {structure: width}, in Python lpvit.Width()")
        return values

    @model_validator(mode="after")
    def _keys_fit(self) -> "Budget":
        targets, outcomes = self.targets, [name for name in OUTCOMES if getattr(self, name) is not None]
        if outcomes and len([*targets, *outcomes]) > 1:
            raise ValueError(f"'{outcomes[0]}' is a budget alone, found also {', '.join([*targets, *outcomes[1:]])}")
        if outcomes and self.steps > 1:
            raise ValueError(f"'{outcomes[0]}' takes one round, found steps {self.steps}; leave 'steps' out")
        if not outcomes and not 1 <= len(targets) <= 2:
            raise ValueError(
                f"give one of {', '.join(map(repr, TARGETS))}, or two of them; or one of "
                f"{' and '.join(map(repr, OUTCOMES))}"
            )
        if len(targets) == 2 and not self.allocator.meets_two_budgets:
            raise ValueError(
                f"allocator: '{self.allocator.name}' meets one budget, found {' and '.join(targets)}; "
                "use 'lagrangian' or 'exact'"
            )
        if self.points_lost is None:
            self.without("held_out", because="is for a budget in 'points_lost'")
        if self.latency_table is not None and self.latency is None:
            raise ValueError("latency_table: give the table of measured milliseconds together with 'latency'")
        if self.sparsity is not None and self.sparsity + self.min_keep_ratio > 1 + 1e-9:
            raise ValueError(
                f"sparsity: {self.sparsity:g} is impossible while min_keep_ratio {self.min_keep_ratio:g} is always kept"
            )
        return self


def budget_of_format_1(values: Any) -> Any:
    """A budget as files of format 1 have it, with its structure and the keys of every allocator."""
    if not isinstance(values, Mapping):
        return values
    values, _ = with_moved_keys(Budget, values)
    return {key: value for key, value in values.items() if key not in (*Budget.moved_keys, "structure")}
