"""A pruned model with its masks and costs."""

from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import Tensor, nn

from lpvit.allocation.settings import Budget
from lpvit.api.arguments import require_type
from lpvit.costs.cost import layer_table, measure_costs
from lpvit.errors import LpvitError
from lpvit.models.analysis.network import require_plain_module
from lpvit.models.architecture import Architecture
from lpvit.models.edits import edits_of
from lpvit.structures.blocks.edit import record_keep_masks
from lpvit.structures.blocks.masks import expand_keep_masks, kept_blocks, verify_pruned


@dataclass(frozen=True)
class Pruned:
    """A pruned model, from `lpvit.prune` or `lpvit.load`.

    Attributes:
        model: Its pruned weights are exactly zero; in evaluation mode.
        keep_masks: layer -> (R, C), bool, True where the block is kept, on the CPU.
        block_shape: Rows (output features) and columns (input features) of a block.
        budget: What it was pruned to, if known.
        dense_costs: Of the layers of the dense model, schema ``COSTS``; None asks the source of the model.
        outcomes: Of a budget by outcome, the models that were tried, schema ``OUTCOMES``.
    """

    model: nn.Module
    keep_masks: dict[str, Tensor]
    block_shape: tuple[int, int]
    budget: Budget | None = None
    dense_costs: pd.DataFrame | None = field(default=None, repr=False, compare=False)
    outcomes: pd.DataFrame | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """The model remembers its masks among its edits, in the order in which they were made.

        Raises:
            LpvitError: An argument is of another type.
        """
        require_type("model", self.model, nn.Module, "a model")
        require_type("keep_masks", self.keep_masks, dict, "a dict of layers and their masks")
        for layer, mask in self.keep_masks.items():
            if not (isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.ndim == 2):
                raise LpvitError(f"keep_masks: '{layer}' has no mask of rows and columns of blocks, bool")
        for name in ("dense_costs", "outcomes"):
            require_type(name, getattr(self, name), pd.DataFrame | None, "a DataFrame or None")
        record_keep_masks(self.model, self.keep_masks, self.block_shape)

    def __repr__(self) -> str:
        """Summary of model and costs; for the modules see the ``repr`` of ``model``."""
        try:
            report = self.report
        except LpvitError as error:
            return f"Pruned({type(self.model).__name__}), invalid: {error}"
        now, dense = report.loc["(model)"], report.loc["(dense model)"]
        asked = {} if self.budget is None else self.budget.stated  # unknown for files of the pipeline
        budget = ", budget: " * bool(asked) + ", ".join(f"{name} {target:g}" for name, target in asked.items())
        blocks = f", blocks of {self.block_shape[0]}x{self.block_shape[1]}" if self.keep_masks else ""
        lines = (
            f"Pruned({type(self.model).__name__}{blocks}{budget})\n"
            f"  MACs: {now['macs']:,.0f} of {dense['macs']:,.0f} per image ({now['keep_ratio']:.1%})\n"
            f"  parameters: {now['parameters']:,.0f} of {dense['parameters']:,.0f}"
        )
        if not self.keep_masks:
            return f"{lines}; see .report"
        kept = f"{now['blocks_kept']:,.0f} of {dense['blocks_kept']:,.0f}"
        return f"{lines}\n  blocks: {kept}, in {len(self.keep_masks)} layers; see .report"

    @property
    def architecture(self) -> Architecture:
        """What builds the model again: its source, and its edits in order.

        Raises:
            LpvitError: As `lpvit.models.architecture.Architecture.of`.
        """
        return Architecture.of(self.model)

    @property
    def report(self) -> pd.DataFrame:
        """Costs of every layer, of everything else (norms, embeddings), and of the model, pruned and dense.

        Norms and embeddings of a narrower model count as its own for the dense one too.

        Returns:
            Indexed by layer: ``keep_ratio``, the kept share of the MACs, for a layer also of its weights;
            ``blocks_kept``, 0 without a mask; ``macs`` per image, in linear layers, as a budget counts them;
            ``parameters``, without the pruned ones.

        Raises:
            LpvitError: As `require_pruned`.
        """
        require_pruned(self)
        costs, dense = measure_costs(self.model), self._dense_costs().set_index("layer")
        layers = layer_table("pruned", costs, kept_blocks(costs, self.keep_masks, self.block_shape))
        of_dense = [name if name in dense.index else name.rpartition(".")[0] for name in layers["layer"]]
        report = layers.groupby(of_dense, sort=False)[["blocks_kept", "macs", "parameters"]].sum().rename_axis("layer")
        others = sum(parameter.numel() for parameter in self.model.parameters()) - costs["parameters"].sum()
        report.loc["(others)"] = [0, 0, others]
        report.loc["(model)"] = report.sum()
        report.loc["(dense model)"] = [layers["blocks"].sum(), dense["macs"].sum(), dense["parameters"].sum() + others]
        dense_macs = [*dense.loc[report.index[:-3], "macs"], 0, *[dense["macs"].sum()] * 2]
        report.insert(0, "keep_ratio", (report["macs"] / dense_macs).fillna(1.0))
        return report

    def _dense_costs(self) -> pd.DataFrame:
        """Costs of the model without the edits that removed something."""
        others = [edit for edit in edits_of(self.model) if not edit.removes]
        if len(others) == len(edits_of(self.model)):
            return measure_costs(self.model)
        if self.dense_costs is not None:
            return self.dense_costs
        with torch.device("meta"):
            return measure_costs(self.architecture.with_edits(others).build())


def require_pruned(pruned: object) -> Pruned:
    """Checks that an object is a pruned model whose pruned weights are zero, also after a training elsewhere.

    Raises:
        LpvitError: It is something else, a mask does not fit its layer, or a pruned weight is not zero.
    """
    require_type("pruned", pruned, Pruned, "the result of lpvit.prune or lpvit.load")
    assert isinstance(pruned, Pruned)
    require_plain_module(pruned.model)
    try:
        expanded = expand_keep_masks(pruned.model, pruned.keep_masks, pruned.block_shape)
        verify_pruned(pruned.model.state_dict(), expanded)
    except AssertionError as error:
        raise LpvitError(f"model: {error}; train it with fixed masks (lpvit.finetune), or set them to zero") from None
    return pruned
