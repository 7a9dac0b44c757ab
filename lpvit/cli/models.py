"""Describes and converts files of models and results."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from lpvit.api.arguments import require_file
from lpvit.api.artifact import KINDS, read_artifact
from lpvit.api.checkpoint import load, save
from lpvit.api.export import export_onnx, export_openvino
from lpvit.api.pruned import Pruned
from lpvit.cli.opened import open_model
from lpvit.errors import LpvitError, some_of
from lpvit.export.description import Description
from lpvit.export.settings import ImageSize
from lpvit.models.architecture import Architecture, load_model
from lpvit.sparse.build import build_obstacle
from lpvit.store.artifacts import header
from lpvit.store.schemas import ALL
from lpvit.store.tables import read_parquet

LINES = 40  # of a text that are shown
PICTURES = {
    ".svg": "a figure of the report, for papers",
    ".png": "a figure of the report",
    ".html": "a page of the report; open it in a browser",
}


def described(path: Path) -> Iterator[str]:
    """Describes a file, line by line.

    Raises:
        LpvitError: It is missing, damaged, or not written by lpvit.
    """
    require_file(path)
    yield f"{path}: {path.stat().st_size / 1e6:,.1f} MB"
    described_as = {
        ".parquet": _described_table,
        ".pt": _described_artifact,
        ".safetensors": _described_file,
        ".onnx": _described_export,
        ".xml": _described_export,
        ".csv": _described_text,
        ".json": _described_text,
        ".md": _described_text,
        ".log": _described_text,
    }
    if path.suffix in PICTURES:
        yield PICTURES[path.suffix]
    elif path.suffix in described_as:
        yield from described_as[path.suffix](path)
    else:
        raise LpvitError(f"{path}: not written by lpvit; it reads {', '.join((*described_as, *PICTURES))}")


def _described_file(path: Path) -> Iterator[str]:
    yield from _described_pruned(load(path))


def _described_export(path: Path) -> Iterator[str]:
    description = open_model(path).description
    if description is None:
        yield "a model, without names of classes and preprocessing: of another program, or of an older lpvit"
        return
    yield from _described_classes(description)


def _described_classes(description: Description) -> Iterator[str]:
    preprocessing, names = description.preprocessing, description.classes
    size = "x".join(map(str, preprocessing.input_size))
    yield f"images: {size} (channels, height, width), mean {preprocessing.mean}, std {preprocessing.std}"
    yield f"classes: {len(names)}: {some_of(names)}" if names else "classes: their names are not known"


def _described_text(path: Path) -> Iterator[str]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    yield from lines[:LINES]
    if len(lines) > LINES:
        yield f"... {len(lines) - LINES} more lines"


def _described_table(path: Path) -> Iterator[str]:
    name = path.name.removeprefix("dense_")
    schema = next((schema for schema in ALL if schema.file in (name, f"{name.partition('@')[0]}.parquet")), None)
    if schema is None:
        raise LpvitError(f"{path}: not a table of lpvit; these are {', '.join(schema.file for schema in ALL)}")
    table = read_parquet(path, schema)
    yield f"a table: {len(table)} rows, one per {schema.row}"
    if len(table):
        yield table.head(20).to_string(index=False)


def _described_artifact(path: Path) -> Iterator[str]:
    about = header(path)
    yield f"holds: {about['kind']}, written by lpvit {about['lpvit']} with torch {about['torch']}"
    yield from (f"{name}: {value}" for name, value in about["provenance"].items())
    if about["kind"] in KINDS:
        yield from _described_pruned(read_artifact(path))
    elif about["kind"] == "dense":
        architecture, state = load_model(path, "dense")
        parameters = sum(tensor.numel() for tensor in state.values())
        yield f"{_described_architecture(architecture)}, {parameters:,} numbers in its state"


def _described_pruned(pruned: Pruned) -> Iterator[str]:
    yield _described_architecture(pruned.architecture)
    with suppress(LpvitError):  # of images that are neither grey nor RGB
        yield from _described_classes(Description.of(pruned.model))
    yield repr(pruned)
    yield pruned.report.to_string(formatters={"keep_ratio": "{:.3f}".format}, float_format="{:,.0f}".format)
    if pruned.keep_masks and (reason := build_obstacle()):
        yield f"no CPU kernel on this machine, pruned layers run dense here: {reason}"


def _described_architecture(architecture: Architecture) -> str:
    names = f" ({some_of(architecture.classes)})" if architecture.classes else ""
    edits = f", edits: {', '.join(edit.kind for edit in architecture.edits)}" if architecture.edits else ""
    return f"model: {architecture.source}, {architecture.source.num_classes} classes{names}{edits}"


def export(
    path: Path,
    target: Path,
    precision: str | None = None,
    opset: int | None = None,
    image_size: ImageSize | None = None,
) -> Iterator[str]:
    """Writes a pruned model as a file for `lpvit.load`, as ONNX or for OpenVINO, by suffix; says how to use it.

    Args:
        path: Of the model.
        target: File to write.
        precision: Of the products in OpenVINO; float32 by default.
        opset: Of ONNX, as for `lpvit.export_onnx`.
        image_size: Likewise.

    Raises:
        LpvitError: It is not a pruned model, the suffix is unknown or takes no such option, or a package is missing.
    """
    of_openvino = partial(export_openvino, precision=precision or "float32")
    of_onnx = partial(export_onnx, opset=opset, image_size=image_size or "fixed")
    writers: dict[str, Callable[[Pruned, Path], None]]
    writers = {".safetensors": save, ".onnx": of_onnx, ".xml": of_openvino}
    if target.suffix not in writers:
        raise LpvitError(f"{target}: found suffix '{target.suffix}', expected one of {', '.join(writers)}")
    if target.is_dir():
        raise LpvitError(f"{target}: is a folder, expected a file to write")
    if precision is not None and target.suffix != ".xml":
        raise LpvitError(f"{target}: --precision is for .xml files only; this one keeps that of the model")
    for option, value in (("--opset", opset), ("--image-size", image_size)):
        if value is not None and target.suffix != ".onnx":
            raise LpvitError(f"{target}: {option} is for .onnx files only; leave it out")
    pruned = read_pruned(path)
    writers[target.suffix](pruned, target)
    yield from _exported(pruned, target, path)


def _exported(pruned: Pruned, target: Path, source: Path) -> Iterator[str]:
    """Files with sizes, what reads them, what they need, and what is gained."""
    beside = [target.with_suffix(".bin"), target.with_name("lpvit_openvino.so")] if target.suffix == ".xml" else []
    for file in (target, *beside):
        yield f"wrote {file} ({file.stat().st_size / 1e6:,.1f} MB; {source}: {source.stat().st_size / 1e6:,.1f} MB)"
    name, folder = target.name, "" if target.parent == Path() else f" (in {target.parent})"
    if target.suffix == ".safetensors":
        yield f"load it{folder}: pruned = lpvit.load('{name}'); needs lpvit and timm; pruned blocks are not stored"
    elif target.suffix == ".onnx":
        yield f"load it{folder}: onnxruntime.InferenceSession('{name}'); needs onnxruntime, or any other ONNX engine"
        if pruned.keep_masks:
            yield "pruned blocks are zeros there, of dense size and speed; .xml comes with kernels that skip them"
        else:
            yield "smaller layers: every engine stores and computes less"
    else:
        yield (
            f"load it{folder}: core = openvino.Core(); core.add_extension('lpvit_openvino.so'); "
            f"core.read_model('{name}'); needs the installed release of OpenVINO, neither torch nor lpvit"
        )
    yield f"time it: lpvit bench {target}; try it: lpvit predict {target} IMAGE"


def read_pruned(path: Path) -> Pruned:
    """A pruned model, from a file of `lpvit.save` or of the pipeline.

    Raises:
        LpvitError: It is none.
    """
    require_file(path)
    if path.suffix not in (".pt", ".safetensors"):
        raise LpvitError(f"{path}: found suffix '{path.suffix}', expected a compressed model: .safetensors, .pt")
    return read_artifact(path) if path.suffix == ".pt" else load(path)
