"""Export to ONNX and to OpenVINO."""

import shutil
from contextlib import ExitStack
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from lpvit.api.arguments import require_path
from lpvit.api.pruned import Pruned, require_pruned
from lpvit.api.sparsify import in_precision
from lpvit.errors import LpvitError
from lpvit.export.description import metadata_of
from lpvit.export.onnx import write_onnx
from lpvit.export.openvino import converted
from lpvit.export.settings import Export, ImageSize
from lpvit.inference.sparsify import sparsify_layers
from lpvit.models.sources.families import call_modules
from lpvit.models.sources.timm import input_size
from lpvit.precisions import SPARSE
from lpvit.sparse.build import openvino_library
from lpvit.store.artifacts import replace_atomically


def export_onnx(
    pruned: Pruned,
    path: str | Path,
    *,
    opset: int | None = None,
    image_size: ImageSize = "fixed",
) -> None:
    """Writes the model with its pruned weights as zeros, for any batch size.

    Layers in int8 remain in int8: their tokens are quantised at run time, in operators that onnxruntime computes in
    int8.

    Input ``images`` (N, channels, height, width), float32, normalised; output ``logits`` (N, classes).

    Args:
        pruned: From `lpvit.prune`, `lpvit.quantise` or `lpvit.load`.
        path: Target, ``.onnx``; weights included.
        opset: Version of ONNX's operators; None is torch's choice.
        image_size: ``dynamic`` leaves height and width free, for models that take several sizes, such as those of timm
            with ``dynamic_img_size=True``, and DINOv2 and DINOv3 of transformers.

    Raises:
        LpvitError: The packages that write ONNX are not installed; this opset cannot be written; or the model takes
            one size of images alone.
    """
    path, model = require_path(path), require_pruned(pruned).model
    settings = Export(opset=opset, image_size=image_size)
    with replace_atomically(path) as partial:
        write_onnx(model, partial, settings)


def export_openvino(pruned: Pruned, path: str | Path, precision: str = "float32") -> None:
    """Writes the model without its pruned blocks for OpenVINO on a CPU, and the library with its kernels.

    Next to ``path`` it writes the weights (``.bin``) and ``lpvit_openvino.so``, which needs neither torch nor lpvit,
    but the installed release of OpenVINO: ``core.add_extension("lpvit_openvino.so")`` before ``core.read_model(path)``.
    All masked layers are block-sparse and attention of ViT, DeiT and Swin uses our kernel, untimed; everything else is
    OpenVINO's.

    Input ``images`` (N, channels, height, width), float32, normalised; output ``logits`` (N, classes).

    Args:
        pruned: From `lpvit.prune`, `lpvit.quantise` or `lpvit.load`; not modified.
        path: Target, ``.xml``.
        precision: Of the products in masked layers and in attention: ``float32``, ``bfloat16`` or ``int8``. Everything
            else is in bfloat16 for ``bfloat16``, and for ``int8`` if this machine has a kernel for it.

    Raises:
        LpvitError: The precision is unknown or not available for blocks of an odd width; OpenVINO is not installed; or
            the library cannot be built.
    """
    require_pruned(pruned)
    path = require_path(path)
    if path.suffix != ".xml" or precision not in SPARSE:
        raise LpvitError(f"{path}: expected a file .xml, and a precision of {', '.join(SPARSE)}, not '{precision}'")
    dense = pruned.model
    if precision == "bfloat16" and pruned.block_shape[1] % 2:
        raise LpvitError(f"{path}: no kernel for blocks of {pruned.block_shape[1]} columns, an odd number, in bfloat16")
    if find_spec("openvino") is None:
        raise LpvitError(f"{path}: needs the package 'openvino'; pip install 'lpvit[engines]'")
    import openvino

    library = openvino_library()
    model = in_precision(call_modules(deepcopy(dense).cpu().eval().requires_grad_(False)), precision)
    sparsify_layers(model, pruned.keep_masks, pruned.block_shape, only_faster=False, precision=precision)
    with TemporaryDirectory() as folder, ExitStack() as stack:
        written = Path(folder, "model.xml")
        program = converted(model, input_size(model), library)
        for key, text in metadata_of(pruned.model).items():
            program.set_rt_info(text, ["lpvit", key])
        openvino.save_model(program, written, compress_to_fp16=False)
        copies = {
            path.with_name("lpvit_openvino.so"): library,
            path.with_suffix(".bin"): written.with_suffix(".bin"),
            path: written,
        }
        for target, source in copies.items():
            shutil.copyfile(source, stack.enter_context(replace_atomically(target)))
