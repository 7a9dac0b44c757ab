"""Operators of `lpvit.sparse` in models of OpenVINO: `BlockSparseLinear` and `FusedAttention` of csrc/openvino.cpp.

N = images, or windows of them; T = tokens; H = heads; d = features of a head; W = masks.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lpvit.models.outputs import with_tensor_output
from lpvit.sparse.int8 import QuantisedLayer
from lpvit.sparse.linear import BlockSparseLinear
from lpvit.sparse.operator import FusedOperations, SparseLayer

_SCALARS = {"out_features": 0, "block_columns": 0, "gelu": False, "norm_epsilon": 0.0}  # with their defaults
# In the order of the operation's inputs.
_TENSORS = (
    *("inputs", "values", "crow_indices", "col_indices", "bias", "scales", "row_sums"),
    *("norm_weight", "norm_bias", "residual"),
)


def converted(model: nn.Module, input_size: tuple[int, ...], library: Path) -> Any:
    """Converts a model to OpenVINO, for any batch size.

    Args:
        model: With block-sparse layers, on the CPU, from and to float32; the layout of their values is changed.
        input_size: Of an image.
        library: From `lpvit.sparse.build.openvino_library`.

    Returns:
        ``openvino.Model``: input ``images``, output ``logits``, both float32. It shares memory with the model.
    """
    import openvino
    from openvino.frontend.pytorch import ConversionExtension
    from openvino.utils.node_factory import NodeFactory

    for layer in model.modules():
        if isinstance(layer, BlockSparseLinear):  # OpenVINO copies other layouts, and loses the copies in bfloat16
            layer.values = layer.values.contiguous()
    images = torch.zeros(2, *input_size)
    program = torch.export.export(
        with_tensor_output(model, images),
        (images,),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    factory = NodeFactory()
    factory.add_extension(str(library))

    rules = {
        "block_sparse_linear": lambda context: _linear(context, SparseLayer._fields, factory),
        "block_sparse_linear_int8": lambda context: _linear(context, QuantisedLayer._fields, factory),
        "attention": lambda context: _attention(context, False, factory),
        "attention_int8": lambda context: _attention(context, True, factory),
    }
    extension = [ConversionExtension(f"lpvit.{name}.default", rule) for name, rule in rules.items()]
    found = openvino.convert_model(program, extension=extension)
    found.inputs[0].get_tensor().set_names({"images"})
    found.outputs[0].get_tensor().set_names({"logits"})
    found.reshape({"images": [-1, *input_size]})
    return found


def _linear(context: Any, fields: tuple[str, ...], factory: Any) -> Any:
    """The operation for a layer; its values with columns before rows, as the kernels read them."""
    given = _arguments(context, ("inputs", *fields, *FusedOperations._fields))
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


def _attention(context: Any, int8: bool, factory: Any) -> Any:
    """The operation for attention, on the outputs of one layer if these are its queries, keys and values."""
    given = _arguments(context, ("queries", "keys", "values", "bias", "mask", "scale"))
    parts = [given[name] for name in ("queries", "keys", "values")]
    packed = _packed(parts)
    attributes = {
        "heads": parts[0].get_partial_shape()[2].get_length(),
        "scale": float(given["scale"].get_node().data.item()),
        "int8": int8,
        "biased": "bias" in given,
        "masked": "mask" in given,
    }
    tables = [given[name] for name in ("bias", "mask") if name in given]
    return factory.create("FusedAttention", [*([packed] if packed else parts), *tables], attributes).outputs()


def _packed(parts: Sequence[Any]) -> Any:
    """The (N, T, 3 H d) that was reshaped to (N, T, 3, H, d) and cut into these parts; None if there is none."""
    cuts = []
    for index, part in enumerate(parts):
        squeezed = part.get_node()
        cut = squeezed.input_value(0).get_node()
        if (squeezed.get_type_name(), cut.get_type_name()) != ("Squeeze", "Slice"):
            return None
        start, _, step, axis = (int(cut.input_value(place).get_node().data.item()) for place in (1, 2, 3, 4))
        if (start, step, axis) != (index, 1, 2):
            return None
        cuts.append(cut.input_value(0).get_node())
    reshaped = cuts[0]
    whole = reshaped.input_value(0)
    is_split = all(cut == reshaped for cut in cuts) and reshaped.get_type_name() == "Reshape"
    return whole if is_split and len(whole.get_partial_shape()) == 3 else None


def _arguments(context: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """The arguments of an operator call without None; torch omits trailing defaults."""

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
