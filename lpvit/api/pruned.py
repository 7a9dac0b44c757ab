"""A pruned model with its masks, and what it costs."""

from dataclasses import dataclass

import pandas as pd
from torch import Tensor, nn

from lpvit.allocation.settings import Budget
from lpvit.costs.cost import layer_table, measure_costs
from lpvit.models.architecture import Architecture
from lpvit.structures.blocks.masks import kept_blocks


@dataclass(frozen=True)
class Pruned:
    """What `lpvit.prune` returns and `lpvit.load` reads.

    Attributes:
        model: Its pruned weights are exactly zero; in evaluation mode.
        keep_masks: layer -> (R, C), bool, True where the block stays, on the CPU.
        block_shape: Rows (output features) and columns (input features) of a block.
        budget: What it was pruned to, if known.
        architecture: What builds the model again, if known; else `lpvit.save` asks the model.
    """

    model: nn.Module
    keep_masks: dict[str, Tensor]
    block_shape: tuple[int, int]
    budget: Budget | None = None
    architecture: Architecture | None = None

    def __repr__(self) -> str:
        """What it is and what stays of it; the model itself is left to its own ``repr``."""
        report = self.report
        now, dense = report.loc["(model)"], report.loc["(dense model)"]
        asked = {} if self.budget is None else self.budget.targets  # not known of a file of the pipeline
        budget = ", budget: " * bool(asked) + ", ".join(f"{name} {target:g}" for name, target in asked.items())
        return (
            f"Pruned({type(self.model).__name__}, blocks of {self.block_shape[0]}x{self.block_shape[1]}{budget})\n"
            f"  MACs: {now['macs']:,.0f} of {dense['macs']:,.0f} an image ({now['keep_ratio']:.1%})\n"
            f"  parameters: {now['parameters']:,.0f} of {dense['parameters']:,.0f}\n"
            f"  blocks: {now['blocks_kept']:,.0f} of {dense['blocks_kept']:,.0f}, "
            f"in {len(self.keep_masks)} layers; see .report"
        )

    @property
    def report(self) -> pd.DataFrame:
        """What every layer costs, then all else (norms, embeddings), then the model, now and dense.

        Returns:
            Indexed by layer: ``keep_ratio``, the share of the MACs that stays, for a layer also that of its weights;
            ``blocks_kept``, 0 without a mask; ``macs`` for an image, in linear layers, as a budget counts them;
            ``parameters``, without the pruned ones.
        """
        costs = measure_costs(self.model)
        layers = layer_table("pruned", costs, kept_blocks(costs, self.keep_masks, self.block_shape))
        columns = ["blocks_kept", "macs", "parameters"]
        report = layers.set_index("layer")[columns]
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        report.loc["(others)"] = [0, 0, parameters - costs["parameters"].sum()]
        report.loc["(model)"] = report.sum()
        report.loc["(dense model)"] = [layers["blocks"].sum(), costs["macs"].sum(), parameters]
        dense_macs = [*costs["macs"], 0, *[costs["macs"].sum()] * 2]
        report.insert(0, "keep_ratio", (report["macs"] / dense_macs).fillna(1.0))
        return report
