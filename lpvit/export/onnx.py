"""Models as ONNX files."""

from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.export.description import metadata_of
from lpvit.export.onnx_int8 import make_products_exact, replace_for_export, translations
from lpvit.models.outputs import read
from lpvit.models.sources.timm import input_size


class _Read(nn.Module):
    """A model with what counts of its output as a tensor (N, K)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return read(self.model, self.model(images))


def write_onnx(model: nn.Module, path: str | Path) -> None:
    """Writes a model in float32, with its int8 layers in int8, for any batch size.

    Input ``images`` (N, channels, height, width), float32; output ``logits`` (N, classes), or features if the model
    gives no logits; metadata ``description``.

    Args:
        model: Not modified.
        path: Target, overwritten.

    Raises:
        LpvitError: The packages that write ONNX are not installed.
    """
    missing = [package for package in ("onnx", "onnxscript") if find_spec(package) is None]
    if missing:
        raise LpvitError(f"{path}: writing ONNX needs the package '{missing[0]}'; pip install 'lpvit[onnx]'")
    metadata = metadata_of(model)
    model = deepcopy(model).cpu().float().eval()
    replace_for_export(model)
    images = torch.zeros(2, *input_size(model))
    with torch.no_grad():
        reads = not isinstance(model(images), Tensor)
    program = torch.onnx.export(
        _Read(model) if reads else model,
        (images,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["images"],
        output_names=["logits"],
        custom_translation_table=translations(),
        verbose=False,
    )
    assert program is not None  # always so with dynamo
    make_products_exact(program.model.graph)
    program.model.metadata_props.update(metadata)
    program.save(path)
