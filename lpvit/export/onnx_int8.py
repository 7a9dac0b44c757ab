"""Layers in int8 as ONNX operators: the integers of `lpvit.quantisation.layers`, token by token.

``MatMulInteger`` of tokens in uint8, which is fast in onnxruntime, minus zero points times sums of weights.
T = tokens; I, O = input and output features.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lpvit.quantisation.layers import LEVELS, SMALLEST_RANGE, QuantisedLinear, integer_product, quantise_tokens


@torch.library.custom_op("lpvit::int8_product", mutates_args=())
def int8_product(inputs: Tensor, weight: Tensor, scales: Tensor, row_sums: Tensor) -> Tensor:
    """The product of `QuantisedLinear` with float inputs (..., I), without its bias.

    Args:
        inputs: Shape (..., I).
        weight: Shape (I, O), int8.
        scales: Shape (O,).
        row_sums: Sum of the integers of every output, (O,), int32.

    Returns:
        Shape (..., O), float32.
    """
    values, token_scales, zero_points = quantise_tokens(inputs)
    sums = integer_product(values.flatten(0, -2), weight.T).reshape(*inputs.shape[:-1], len(scales))
    return (sums - zero_points.int() * row_sums).float() * token_scales * scales


@int8_product.register_fake
def _(inputs: Tensor, weight: Tensor, scales: Tensor, row_sums: Tensor) -> Tensor:
    return inputs.new_empty(*inputs.shape[:-1], len(scales))


class ExportedLinear(nn.Module):
    """A `QuantisedLinear` for export."""

    def __init__(self, layer: QuantisedLinear) -> None:
        super().__init__()
        self.register_buffer("weight", layer.weight.T.contiguous())
        self.register_buffer("scales", layer.scales)
        self.register_buffer("row_sums", layer.weight.sum(dim=1, dtype=torch.int32))
        self.bias = layer.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        outputs: Tensor = int8_product(inputs, self.weight, self.scales, self.row_sums)
        return outputs if self.bias is None else outputs + self.bias


def replace_for_export(model: nn.Module) -> None:
    """Replaces every int8 layer by its form for export."""
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantisedLinear):
            model.set_submodule(name, ExportedLinear(module))


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Translation of `int8_product` for torch's exporter."""
    import onnxscript
    from onnxscript import opset18

    op: Any = opset18  # its types do not cover computed values

    def number(value: float) -> Any:
        return op.Constant(value_float=value)

    def product(inputs: Any, weight: Any, scales: Any, row_sums: Any) -> Any:
        axis = op.Constant(value_ints=[-1])
        low, high = op.Min(op.ReduceMin(inputs, axis), number(0.0)), op.Max(op.ReduceMax(inputs, axis), number(0.0))
        extent = op.Max(op.Sub(high, low), number(SMALLEST_RANGE))
        reciprocal = op.Div(number(float(LEVELS)), extent)
        zero_points = op.Round(op.Mul(op.Neg(low), reciprocal))
        values = op.Min(op.Add(op.Round(op.Mul(inputs, reciprocal)), zero_points), number(float(LEVELS)))
        sums = op.MatMulInteger(op.Cast(values, to=onnxscript.UINT8.dtype), weight)
        moved = op.Sub(sums, op.Mul(op.Cast(zero_points, to=onnxscript.INT32.dtype), row_sums))
        return op.Mul(op.Mul(op.Cast(moved, to=onnxscript.FLOAT.dtype), op.Div(extent, number(float(LEVELS)))), scales)

    return {torch.ops.lpvit.int8_product.default: product}
