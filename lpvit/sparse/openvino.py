"""Operators of `lpvit.sparse` in models of OpenVINO: its layers as `BlockSparseLinear` of csrc/openvino.cpp.

N = images, or windows of them; T = tokens; H = heads; d = features of a head; W = masks.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lpvit.sparse.int8 import QuantisedLayer
from lpvit.sparse.linear import BlockSparseLinear
from lpvit.sparse.operator import SparseLayer, Surroundings

_ATTENTION = ("queries", "keys", "values", "bias", "mask", "scale")
_SCALARS = {"out_features": 0, "block_columns": 0, "gelu": False, "norm_epsilon": 0.0}  # and what they are by default
# In the order in which the operation takes them.
_TENSORS = (
    *("inputs", "values", "crow_indices", "col_indices", "bias", "scales", "row_sums"),
    *("norm_weight", "norm_bias", "residual"),
)


class _InFloat32(nn.Module):
    """A model that takes images and gives logits in float32, whatever it computes in."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        dtype = next(parameter.dtype for parameter in self.model.parameters() if parameter.is_floating_point())
        logits: Tensor = self.model(images.to(dtype)).float()
        return logits


def converted(model: nn.Module, input_size: tuple[int, ...], library: Path) -> Any:
    """A model as OpenVINO has it, for any number of images.

    Args:
        model: With block-sparse layers, on the CPU; their values are laid out anew.
        input_size: Of an image.
        library: From `lpvit.sparse.build.openvino_library`.

    Returns:
        ``openvino.Model``: input ``images``, output ``logits``, both float32. It shares memory with the model.
    """
    import openvino
    from openvino.frontend.pytorch import ConversionExtension
    from openvino.utils.node_factory import NodeFactory

    for layer in model.modules():
        if isinstance(layer, BlockSparseLinear):  # OpenVINO copies others, and loses the copies in bfloat16
            layer.values = layer.values.contiguous()
    program = torch.export.export(
        _InFloat32(model).eval(),
        (torch.zeros(2, *input_size),),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    factory = NodeFactory()
    factory.add_extension(str(library))

    rules = {
        "block_sparse_linear": lambda context: _linear(context, SparseLayer._fields, factory),
        "block_sparse_linear_int8": lambda context: _linear(context, QuantisedLayer._fields, factory),
        "attention": _attention,
        "attention_int8": _attention,  # OpenVINO has none in int8
    }
    extension = [ConversionExtension(f"lpvit.{name}.default", rule) for name, rule in rules.items()]
    found = openvino.convert_model(program, extension=extension)
    found.inputs[0].get_tensor().set_names({"images"})
    found.outputs[0].get_tensor().set_names({"logits"})
    found.reshape({"images": [-1, *input_size]})
    return found


def _linear(context: Any, fields: tuple[str, ...], factory: Any) -> Any:
    """The operation for a layer; its values with columns before rows, as the kernels read them."""
    given = _arguments(context, ("inputs", *fields, *Surroundings._fields))
    values = given["values"].get_node()
    given["values"] = _with_columns_first(values)
    scalars = {
        name: type(default)(given[name].get_node().data.item() if name in given else default)
        for name, default in _SCALARS.items()
    }
    attributes = scalars | {
        "block_rows": int(values.shape[1]),
        "block_columns": scalars["block_columns"] or int(values.shape[2]),
        "biased": "bias" in given,
        "normalises": "norm_weight" in given,
        "adds": "residual" in given,
    }
    return factory.create(
        "BlockSparseLinear", [given[name] for name in _TENSORS if name in given], attributes
    ).outputs()


def _attention(context: Any) -> Any:
    """Attention in OpenVINO's own operations, which it fuses."""
    from openvino import opset14 as op

    given = _arguments(context, _ATTENTION)
    heads_first = op.constant(np.array([0, 2, 1, 3]))
    queries, keys, values = (op.transpose(given[name], heads_first) for name in _ATTENTION[:3])
    scale = op.convert_like(op.constant(np.float32(given["scale"].get_node().data.item())), queries)
    scores = op.matmul(op.multiply(queries, scale), keys, False, True)
    if "bias" in given:
        scores = op.add(scores, given["bias"])
    if "mask" in given:  # that of an image is its index modulo W
        shape = op.shape_of(scores)
        masks = op.unsqueeze(given["mask"], op.constant(1))
        count = op.gather(op.shape_of(masks), op.constant([0]), op.constant(0))
        of_a_head = op.gather(shape, op.constant([1, 2, 3]), op.constant(0))
        parted = op.reshape(scores, op.concat([op.constant([-1]), count, of_a_head], 0), False)
        scores = op.reshape(op.add(parted, masks), shape, False)
    outputs = op.transpose(op.matmul(op.softmax(scores, -1), values, False, False), heads_first)
    return op.reshape(outputs, op.constant([0, 0, -1]), True).outputs()


def _arguments(context: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """What an operator was called with, without what is None; torch leaves out defaults at the end."""

    def given() -> Iterator[tuple[str, Any]]:
        for index in range(context.get_input_size()):
            argument = context.get_input(index)
            node = argument.get_node()
            is_none = node.get_type_name() == "PtFrameworkNode" and node.get_input_size() == 0
            if not is_none:
                yield names[index], argument

    return dict(given())


def _with_columns_first(values: Any) -> Any:
    """Blocks (K, r, c, ...) as a constant (K, c, r, ...)."""
    import openvino

    moved = np.ascontiguousarray(np.swapaxes(values.data, 1, 2))  # bfloat16 by its bits, which NumPy calls float16
    tensor = openvino.Tensor(values.get_element_type(), openvino.Shape(moved.shape))
    tensor.data.view(np.uint8)[...] = moved.view(np.uint8)
    return openvino.op.Constant(tensor).output(0)
