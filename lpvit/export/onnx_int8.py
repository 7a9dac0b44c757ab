"""Layers in int8 as ONNX operators: the integers of `lpvit.quantisation.layers`, token by token.

``MatMulInteger`` of tokens in uint8, which is fast in onnxruntime, minus zero points times sums of weights.

x86 processors without VNNI multiply unsigned by signed bytes with ``vpmaddubsw``, which adds pairs of products in 16
bits and saturates: 2 * 255 * 127 > 32767. Products of unsigned by unsigned bytes are exact on every processor, but four
times slower with VNNI. So the file holds both forms of each product, and a test product of constants that would
saturate selects one. onnxruntime evaluates the test once, when it loads the file, and drops the other form.

T = tokens; I, O = input and output features.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lpvit.models.additions import replace_module
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
            replace_module(model, name, ExportedLinear(module))


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


def make_products_exact(graph: Any) -> None:
    """Replaces every product of unsigned by signed bytes by a choice between two forms that are exact together.

    Args:
        graph: Of an ``onnx_ir.Model``; changed.
    """
    import onnx_ir as ir

    products = [node for node in graph if node.op_type == "MatMulInteger"]
    if not products:
        return
    test = saturation_test()
    graph.insert_before(next(iter(graph)), test)
    for product in products:
        name = product.outputs[0].name
        forms = {
            "then_branch": [ir.node("MatMulInteger", product.inputs, name=f"{name}_signed")],
            "else_branch": _unsigned_product(*product.inputs),
        }
        for branch, nodes in forms.items():
            for number, node in enumerate(nodes):
                node.outputs[
                    0
                ].name = f"{name}_{branch}_{number}"  # a subgraph must not reuse a name of the outer graph
        branches = {
            branch: ir.Graph([], nodes[-1].outputs, nodes=nodes, name=f"{name}_{branch}")
            for branch, nodes in forms.items()
        }
        chosen = ir.node("If", test[-1].outputs, branches)
        ir.convenience.replace_nodes_and_values(graph, product, [product], [chosen], product.outputs, chosen.outputs)


def saturation_test() -> list[Any]:
    """Nodes of a test product; the last output is true where products of unsigned by signed bytes do not saturate."""
    import onnx_ir as ir

    constants = _constants(
        unsigned=np.full((16, 16), 255, np.uint8),
        signed=np.full((16, 16), 127, np.int8),
        expected=np.array(16 * 255 * 127, np.int32),
    )
    unsigned, signed, expected = (node.outputs[0] for node in constants)
    product = ir.node("MatMulInteger", [unsigned, signed], name="bytes_product")
    least = ir.node("ReduceMin", product.outputs, {"keepdims": 0}, name="bytes_least")
    exact = ir.node("Equal", [least.outputs[0], expected], name="bytes_exact")
    for node in (product, least, exact):
        node.outputs[0].name = node.name
    return [*constants, product, least, exact]


def _unsigned_product(values: Any, weight: Any) -> list[Any]:
    """Nodes of the product with weights in uint8, with a zero point of 128."""
    import onnx_ir as ir

    shift, zero_point = _constants(shift=np.array(128, np.int32), zero_point=np.array(128, np.uint8))
    wide = ir.node("Cast", [weight], {"to": ir.DataType.INT32})
    moved = ir.node("Add", [wide.outputs[0], shift.outputs[0]])
    unsigned = ir.node("Cast", moved.outputs, {"to": ir.DataType.UINT8})
    product = ir.node("MatMulInteger", [values, unsigned.outputs[0], None, zero_point.outputs[0]])
    return [shift, zero_point, wide, moved, unsigned, product]


def _constants(**values: np.ndarray) -> list[Any]:
    import onnx_ir as ir

    nodes = [ir.node("Constant", [], {"value": ir.tensor(value, name=name)}) for name, value in values.items()]
    for node, name in zip(nodes, values, strict=True):
        node.outputs[0].name = f"bytes_{name}"
    return nodes
