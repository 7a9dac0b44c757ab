"""Describes, times and converts files of models and results."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from lpvit.api.artifact import KINDS, read_artifact
from lpvit.api.checkpoint import load, save
from lpvit.api.export import export_onnx, export_openvino
from lpvit.api.pruned import Pruned
from lpvit.benchmark.settings import Benchmark
from lpvit.benchmark.speed import benchmark
from lpvit.errors import LpvitError, some_of
from lpvit.models.architecture import Architecture, load_model
from lpvit.report.formats import markdown
from lpvit.store.artifacts import header
from lpvit.store.schemas import ALL
from lpvit.store.tables import read_parquet


def described(path: Path) -> Iterator[str]:
    """Describes a file, line by line.

    Raises:
        LpvitError: It is missing, damaged, or not written by lpvit.
    """
    if not path.is_file():
        raise LpvitError(f"{path}: file not found")
    yield f"{path}: {path.stat().st_size / 1e6:,.1f} MB"
    if path.suffix == ".parquet":
        yield from _described_table(path)
    elif path.suffix == ".pt":
        yield from _described_artifact(path)
    else:
        yield from _described_pruned(load(path))


def _described_table(path: Path) -> Iterator[str]:
    name = path.name.removeprefix("dense_")
    schema = next((schema for schema in ALL if schema.file in (name, f"{name.partition('@')[0]}.parquet")), None)
    if schema is None:
        raise LpvitError(f"{path}: not a table of lpvit; these are {', '.join(schema.file for schema in ALL)}")
    table = read_parquet(path, schema)
    yield f"a table: {len(table)} rows, one per {schema.row}"
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
    yield repr(pruned)
    yield pruned.report.to_string(formatters={"keep_ratio": "{:.3f}".format}, float_format="{:,.0f}".format)


def _described_architecture(architecture: Architecture) -> str:
    names = f" ({some_of(architecture.classes)})" if architecture.classes else ""
    edits = f", edits: {', '.join(edit.kind for edit in architecture.edits)}" if architecture.edits else ""
    return f"model: {architecture.source}, {architecture.source.num_classes} classes{names}{edits}"


def timed(path: Path, batch_sizes: Sequence[int], dtype: str, threads: int | None, seconds: float) -> Iterator[str]:
    """Times a pruned model, block-sparse and with zeros, and the dense one; yields lines.

    Raises:
        LpvitError: It is not a pruned model, or a configuration gives wrong logits.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    pruned = read_pruned(path)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = Benchmark(batch_sizes=tuple(batch_sizes), dtype=dtype, seconds=seconds, energy_seconds=0.01)
    dense = read_pruned(path).model  # zeros do not change the time of a dense layer
    speed = benchmark(dense, pruned.model, pruned.keep_masks, pruned.block_shape, settings, device).speed
    about = speed.iloc[0]
    yield f"{about['device_name']}, {about['threads']} threads, {about['dtype']}, kernel: {about['kernel']}"
    shown = pd.DataFrame(
        {
            "configuration": speed["configuration"],
            "batch size": speed["batch_size"].astype(str),
            "ms per pass": speed["milliseconds"].map("{:.2f}".format),
            "95 % interval": [*map("{:.2f} to {:.2f}".format, speed["milliseconds_low"], speed["milliseconds_high"])],
            "images/s": speed["images_per_second"].map("{:.0f}".format),
            "speed-up": speed["speed_up"].map("{:.2f}".format),
        }
    )
    yield markdown(shown, text_columns=1).rstrip()


def export(path: Path, target: Path, precision: str | None = None) -> None:
    """Writes a pruned model as a file for `lpvit.load`, as ONNX or for OpenVINO, by suffix.

    Args:
        path: Of the model.
        target: File to write.
        precision: Of the products in OpenVINO; float32 by default.

    Raises:
        LpvitError: It is not a pruned model, the suffix is unknown or takes no precision, or a package is missing.
    """
    of_openvino = partial(export_openvino, precision=precision or "float32")
    writers: dict[str, Callable[[Pruned, Path], None]]
    writers = {".safetensors": save, ".onnx": export_onnx, ".xml": of_openvino}
    if target.suffix not in writers:
        raise LpvitError(f"{target}: found suffix '{target.suffix}', expected one of {', '.join(writers)}")
    if precision is not None and target.suffix != ".xml":
        raise LpvitError(f"{target}: --precision is for .xml files only; this one keeps that of the model")
    writers[target.suffix](read_pruned(path), target)


def read_pruned(path: Path) -> Pruned:
    """A pruned model, from a file of `lpvit.save` or of the pipeline."""
    return read_artifact(path) if path.suffix == ".pt" else load(path)
