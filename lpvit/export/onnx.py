"""Models as ONNX files.

N = images of a batch; K = numbers that the model gives for an image.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpvit.errors import LpvitError, one_line
from lpvit.export.description import metadata_of
from lpvit.export.onnx_int8 import make_products_exact, replace_for_export, translations
from lpvit.export.settings import Export
from lpvit.models.outputs import read, with_tensor_output
from lpvit.models.sources.timm import input_size

_TOLERANCE = 1e-3  # of the largest output


def write_onnx(model: nn.Module, path: str | Path, settings: Export | None = None) -> None:
    """Writes a model in float32, with its int8 layers in int8, for any batch size.

    Input ``images`` (N, channels, height, width), float32; output ``logits`` (N, classes), or features if the model
    gives no logits; metadata ``description``.

    Args:
        model: Not modified.
        path: Target, overwritten.
        settings: Version of the operators, and whether height and width are free.

    Raises:
        LpvitError: The packages that write ONNX are not installed; the version of the operators cannot be written; or
            the model takes one size of images alone.
    """
    settings = settings or Export()
    missing = [package for package in ("onnx", "onnxscript") if find_spec(package) is None]
    if missing:
        raise LpvitError(f"{path}: writing ONNX needs the package '{missing[0]}'; pip install 'lpvit[onnx]'")
    metadata = metadata_of(model)
    model = deepcopy(model).cpu().float().eval()
    replace_for_export(model)
    program = (
        _of_any_size(model, settings.opset)
        if settings.image_size == "dynamic"
        else _program(model, torch.zeros(2, *input_size(model)), {0: torch.export.Dim("batch")}, settings.opset)
    )
    make_products_exact(program.model.graph)
    program.model.metadata_props.update(metadata)
    program.save(path)
    if settings.opset is not None:
        _require_opset(program, settings.opset, path)


def _program(model: nn.Module, images: Tensor, free: Mapping[int, Any], opset: int | None) -> Any:
    """The ``torch.onnx.ONNXProgram`` of a model, traced with images; axis -> dimension for those that are free.

    Raises:
        LpvitError: torch cannot export the model.
    """
    if hasattr(model, "set_attn_implementation"):  # of transformers: torch cannot export the fused attention of Swin
        with suppress(torch.onnx.OnnxExporterError):
            return _traced(model, images, free, opset)
        use_attention: Any = model.set_attn_implementation
        use_attention("eager")
    try:
        return _traced(model, images, free, opset)
    except torch.onnx.OnnxExporterError as error:
        reason = one_line(error.__cause__ or error)[:100]
        raise LpvitError(f"ONNX: torch cannot export {type(model).__name__} ({reason})") from None


def _traced(model: nn.Module, images: Tensor, free: Mapping[int, Any], opset: int | None) -> Any:
    with _quiet(opset is not None):
        program = torch.onnx.export(
            with_tensor_output(model, images),
            (images,),
            dynamo=True,
            dynamic_shapes=(dict(free),),
            input_names=["images"],
            output_names=["logits"],
            custom_translation_table=translations(),
            opset_version=opset,
            verbose=False,
        )
    assert program is not None  # always so with dynamo
    return program


def _of_any_size(model: nn.Module, opset: int | None) -> Any:
    """The program for images of any height and width.

    It is traced at another size than the model's own, where many models go another way, and compared with the model at
    two further sizes: tracing turns some numbers that follow from the size into constants.

    Raises:
        LpvitError: The model takes its own size alone, or no program takes all sizes as it does.
    """
    channels, height, width = input_size(model)
    free = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    try:
        program = _program(model, torch.zeros(2, channels, 2 * height, 3 * width), free, opset)
        with torch.no_grad():
            for images in (torch.randn(2, channels, height, width), torch.randn(2, channels, height, 2 * width)):
                wanted, found = read(model, model(images)), program.exported_program.module()(images)
                torch.testing.assert_close(found, wanted, rtol=0, atol=_TOLERANCE * float(wanted.abs().max()))
    except Exception as error:  # of the model, or of torch's tracing, which has types of its own
        raise LpvitError(
            f"image_size: {type(model).__name__} takes images of {height}x{width} alone, or no program takes others "
            f"as it does ({one_line(error)[:100]}); leave it fixed, or build the model for several sizes, as "
            "timm's dynamic_img_size=True does"
        ) from None
    return program


@contextmanager
def _quiet(asked: bool) -> Iterator[None]:
    """Without the lines of the conversion between versions of operators; whether it succeeded is checked afterwards."""
    before = logging.root.manager.disable
    if asked:
        logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _require_opset(program: Any, opset: int, path: str | Path) -> None:
    """Checks that the operators of a written file are those of a version: torch only logs if it cannot convert them.

    Raises:
        LpvitError: They could not be converted to it.
    """
    import onnx

    found = program.model.opset_imports[""]
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError:
        found = None
    if found != opset:
        raise LpvitError(f"opset: {opset} cannot be written for this model; choose 18 to 25, or leave it out")
