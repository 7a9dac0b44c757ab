"""Models from any file that lpvit writes, ready to run: in torch, onnxruntime or OpenVINO.

N = images of a batch; K = classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpvit.api.arguments import require_file
from lpvit.api.artifact import KINDS, read_artifact
from lpvit.api.checkpoint import load
from lpvit.api.pruned import Pruned
from lpvit.benchmark.engines import openvino_options
from lpvit.errors import LpvitError, one_line
from lpvit.export.description import KEY, Description
from lpvit.models.architecture import load_model
from lpvit.models.outputs import read
from lpvit.store.artifacts import header

SUFFIXES = (".safetensors", ".pt", ".onnx", ".xml")


@dataclass(frozen=True)
class Opened:
    """A model to run on the CPU.

    Attributes:
        run: Images (N, C, H, W), float32, normalised -> logits (N, K).
        description: Names of classes and preprocessing; None if the file has none.
        model: In torch; None in another engine.
        pruned: If it was compressed and can be read as such.
    """

    run: Callable[[Tensor], Tensor]
    description: Description | None
    model: nn.Module | None = None
    pruned: Pruned | None = None

    def require_description(self, path: Path) -> Description:
        """Names and preprocessing.

        Raises:
            LpvitError: The file has none.
        """
        if self.description is None:
            raise LpvitError(
                f"{path}: says nothing of preprocessing and classes, as files of other programs and of older releases; "
                "export the model again with 'lpvit export'"
            )
        return self.description

    def require_classes(self, path: Path) -> Description:
        """Names and preprocessing of a classifier.

        Raises:
            LpvitError: The file has none, or the model gives features.
        """
        description = self.require_description(path)
        if description.features:
            raise LpvitError(
                f"{path}: the model gives features, not logits of classes; lpvit.probe in Python classifies by them"
            )
        return description


def open_model(path: Path, threads: int | None = None) -> Opened:
    """Opens a dense or compressed model.

    Args:
        path: ``.safetensors`` of `lpvit.save`, ``.pt`` of a run, ``.onnx`` or ``.xml``.
        threads: Of the engine; by default those of torch.

    Raises:
        LpvitError: The file is missing, damaged or of another kind, or its engine is not installed.
    """
    require_file(path)
    if path.suffix not in SUFFIXES:
        raise LpvitError(f"{path}: found suffix '{path.suffix}', expected a model: {', '.join(SUFFIXES)}")
    threads = threads or torch.get_num_threads()
    if path.suffix == ".onnx":
        return _by_onnxruntime(path, threads)
    if path.suffix == ".xml":
        return _by_openvino(path, threads)
    pruned = None
    if path.suffix == ".safetensors":
        pruned = load(path)
    elif (kind := header(path)["kind"]) in KINDS:
        pruned = read_artifact(path)
    elif kind != "dense":
        raise LpvitError(f"{path}: holds '{kind}', expected a model")
    model = _dense(path) if pruned is None else pruned.model
    try:
        description = Description.of(model)
    except LpvitError:  # of images that are neither grey nor RGB
        description = None
    return Opened(_in_torch(model.eval()), description, model, pruned)


def _dense(path: Path) -> nn.Module:
    architecture, state = load_model(path, "dense")
    return architecture.build(state)


def _in_torch(model: nn.Module) -> Callable[[Tensor], Tensor]:
    dtype = next(model.parameters()).dtype

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return read(model, model(images.to(dtype))).float()

    return run


def _by_onnxruntime(path: Path, threads: int) -> Opened:
    _require("onnxruntime", path)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a type for every kind of damage, without a common base
        raise LpvitError(f"{path}: cannot be read as ONNX ({one_line(error)})") from None
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    name = session.get_inputs()[0].name
    return Opened(lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0]), _described(text, path))


def _by_openvino(path: Path, threads: int) -> Opened:
    _require("openvino", path)
    import openvino

    if not path.read_bytes().lstrip().startswith(b"<"):  # OpenVINO would try other formats, with lines of their own
        raise LpvitError(f"{path}: cannot be read by OpenVINO, whose models are XML; export the model again")
    core = openvino.Core()
    library = path.with_name("lpvit_openvino.so")
    try:
        if library.is_file():
            core.add_extension(str(library))
        model = core.read_model(path)
        request: Any = core.compile_model(model, "CPU", openvino_options(threads, "float32")).create_infer_request()
    except RuntimeError as error:
        hint = "" if library.is_file() else f"; {library.name} is not beside it"
        raise LpvitError(f"{path}: cannot be read by OpenVINO ({one_line(error)[:200]}){hint}") from None
    text = str(model.get_rt_info(["lpvit", KEY]).value) if model.has_rt_info(["lpvit", KEY]) else None
    return Opened(lambda images: torch.from_numpy(request.infer({0: images.numpy()})[0].copy()), _described(text, path))


def _described(text: str | None, path: Path) -> Description | None:
    if text is None:
        return None
    try:
        return Description.from_json(text)
    except LpvitError as error:
        raise LpvitError(f"{path}: {error}") from None


def _require(package: str, path: Path) -> None:
    if find_spec(package) is None:
        raise LpvitError(f"{path}: needs the package '{package}'; pip install 'lpvit[engines]'")
