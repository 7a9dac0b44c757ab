"""Linear layers in a precision: computed, measured alone, timed, and inserted into a model; for `precision.py`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Self

import numpy as np
import pandas as pd
import torch
from subject import Batches, logits_of, squared_change
from torch import Tensor, nn

import lpvit
from lpvit.measure.timing import calm_clock, time_in_turns
from lpvit.quantisation.layers import QuantisedLinear, rounded_tokens
from lpvit.refitting.reconstruction import matrix_layer
from lpvit.sparse import BlockSparseLinear
from lpvit.sparse.int8 import quantise_weight
from lpvit.structures.blocks.grid import BlockGrid
from lpvit.structures.blocks.products import change_products

PRECISIONS = ("float32", "bfloat16", "int8")
PRUNED = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # sparsities at which layers are timed
TIMED_BATCH = 8  # images
PROBES = 2  # of the Gauss-Newton products, as for the curves


class RoundedLinear(nn.Linear):
    """Emulates a linear layer in a precision, in float32: inputs and weights are rounded, sums are not."""

    precision: str

    @classmethod
    def like(cls, linear: nn.Module, precision: str) -> Self:
        assert isinstance(linear, nn.Linear)
        rounded = cls(linear.in_features, linear.out_features, linear.bias is not None)
        rounded.load_state_dict(linear.state_dict())
        rounded.precision = precision
        return rounded

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        if self.precision == "bfloat16":
            inputs = inputs.bfloat16().float()
        elif self.precision == "int8":
            inputs = rounded_tokens(inputs)
        return nn.functional.linear(inputs, rounded_weight(self.weight, self.precision), self.bias)


def rounded_weight(weight: Tensor, precision: str) -> Tensor:
    """The nearest weights (O, I) of a precision, as float32; in int8 with one scale per row."""
    if precision == "int8":
        values, scales = quantise_weight(weight)
        return values * scales[:, None]
    return weight.to(getattr(torch, precision)).float()


@contextmanager
def unrounded(model: nn.Module) -> Iterator[None]:
    """Context in which all layers are in float32."""
    precisions = {module: module.precision for module in model.modules() if isinstance(module, RoundedLinear)}
    try:
        for module in precisions:
            module.precision = "float32"
        yield
    finally:
        for module, precision in precisions.items():
            module.precision = precision


def deployed(pruned: lpvit.Pruned) -> nn.Module:
    """The block-sparse model; everything not in int8 is in bfloat16, unless all its layers are in float32."""
    model, precisions = deepcopy(pruned.model), set()
    for name in pruned.keep_masks:
        rounded = model.get_submodule(name)
        assert isinstance(rounded, RoundedLinear)
        precisions.add(rounded.precision)
        linear = nn.Linear(rounded.in_features, rounded.out_features, rounded.bias is not None)
        linear.load_state_dict(rounded.state_dict())
        if rounded.precision == "int8":
            quantised = QuantisedLinear.like(linear)
            quantised.store(*quantise_weight(linear.weight.detach()), linear.bias)
            linear = quantised
        model.set_submodule(name, linear)
    of_others = "float32" if precisions == {"float32"} else "bfloat16"
    return lpvit.sparsify(replace(pruned, model=model), TIMED_BATCH, of_others)


def measure_rounding(model: nn.Module, names: Sequence[str], images: Batches, few: Batches) -> pd.DataFrame:
    """Distortion of every layer alone in every precision, a row each, in squared logits per image.

    Args:
        model: Dense, in float32.
        names: Of linear layers.
        images: For the Gauss-Newton products.
        few: For the measurements.

    Returns:
        ``layer``, ``precision``; ``weights``, predicted by the products of the change of its weights; ``alone``,
        measured with its inputs rounded too.
    """
    weights = {name: matrix_layer(model, name).weight.detach() for name in names}
    changes = {
        name: torch.stack([rounded_weight(weight, precision) - weight for precision in PRECISIONS])
        for name, weight in weights.items()
    }
    products = change_products(model, images, changes, PROBES, "cpu")
    dense, rows = logits_of(model, few), []
    for name in names:
        linear = matrix_layer(model, name)
        predicted = products[name].double().square().mean(dim=0).tolist()
        for precision, of_weights in zip(PRECISIONS, predicted, strict=True):
            model.set_submodule(name, RoundedLinear.like(linear, precision))
            alone = 0.0 if precision == "float32" else squared_change(logits_of(model, few), dense)
            rows.append({"layer": name, "precision": precision, "weights": of_weights, "alone": alone})
        model.set_submodule(name, linear)
    return pd.DataFrame(rows)


@torch.no_grad()
def measure_latency(costs: pd.DataFrame, block_shape: tuple[int, int]) -> pd.DataFrame:
    """Milliseconds per image of layers of every shape in every precision, at several sparsities of random blocks.

    With all blocks kept it is the time of the faster form, dense or block-sparse. Inputs of layers in int8 are in
    bfloat16, as in `lpvit.sparsify`.

    Args:
        costs: Schema ``COSTS``.
        block_shape: Rows and columns of a block.

    Returns:
        The table of `lpvit.allocation.latency.milliseconds`, and the ``precision``.
    """
    rows = []
    shapes = costs[["out_features", "in_features", "tokens"]].drop_duplicates()
    for out_features, in_features, tokens in shapes.itertuples(index=False, name=None):
        dense, grid = nn.Linear(in_features, out_features), BlockGrid((out_features, in_features), block_shape)
        order = torch.randperm(grid.count, generator=torch.Generator().manual_seed(0)).view(grid.rows, -1)
        inputs = torch.randn(TIMED_BATCH, tokens, in_features)
        for sparsity in PRUNED:
            setups = {"dense_float32": partial(dense, inputs)}
            if not sparsity:
                setups["dense_bfloat16"] = partial(deepcopy(dense).bfloat16(), inputs.bfloat16())
            for precision in PRECISIONS:
                keep_mask = order >= round(sparsity * grid.count)
                sparse = BlockSparseLinear.from_linear(dense, keep_mask, block_shape, precision=precision)
                setups[precision] = partial(sparse, inputs if precision == "float32" else inputs.bfloat16())
            times = time_in_turns(setups, device="cpu", seconds=0.3, clock=calm_clock("cpu"))
            dense_milliseconds = 1e3 * float(np.median(times["dense_float32"])) / TIMED_BATCH
            place = {"out_features": out_features, "in_features": in_features, "tokens": tokens, "sparsity": sparsity}
            for setup, seconds in times.items():
                quotient = float(np.median(seconds / times["dense_float32"]))
                rows.append(place | {"configuration": setup, "quotient": quotient, "of_dense": dense_milliseconds})
    table = pd.DataFrame(rows)
    of_dense = table.groupby(["out_features", "in_features", "tokens"])["of_dense"].transform("median")
    table = table.assign(
        precision=table["configuration"].str.removeprefix("dense_"), milliseconds=table["quotient"] * of_dense
    )
    table = table[(table["sparsity"] == 0) | (table["configuration"] == table["precision"])]
    places = ["precision", "out_features", "in_features", "tokens", "sparsity"]
    return table.groupby(places)["milliseconds"].min().reset_index()
