"""Times models from files on this machine: a compressed one beside its dense form, or any files beside each other."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from lpvit.api.pruned import Pruned
from lpvit.benchmark.engines import Rivals, require_engines
from lpvit.benchmark.settings import ENGINES, Benchmark
from lpvit.benchmark.speed import benchmark, facts, speed_table
from lpvit.cli.opened import Opened, open_model
from lpvit.errors import LpvitError, nearest
from lpvit.measure.timing import time_in_turns
from lpvit.models.sources.timm import input_size
from lpvit.precisions import dtype_of
from lpvit.report.formats import markdown
from lpvit.sparse.operator import path_for
from lpvit.store.artifacts import write_text

CALIBRATION = 8  # random images for the scales of engines that quantise; no accuracy is measured


@dataclass(frozen=True)
class Bench:
    """How to time.

    Attributes:
        batch_sizes: Images per pass.
        dtype: Of weights in torch.
        threads: CPU threads; None is torch's number.
        seconds: Per configuration and batch size.
        engines: Others that run the dense and the compressed model as well.
        json: File for the numbers, or None.
        csv: Likewise.
    """

    batch_sizes: Sequence[int]
    dtype: str = "float32"
    threads: int | None = None
    seconds: float = 3.0
    engines: Sequence[str] = ()
    json: Path | None = None
    csv: Path | None = None


def timed(files: Sequence[Path], how: Bench) -> Iterator[str]:
    """Times models; yields lines.

    Args:
        files: One compressed model, timed beside its dense form; or several files, timed in turns.
        how: Batch sizes, durations, engines.

    Raises:
        LpvitError: A file is no model, or a configuration gives wrong logits.
    """
    if how.threads is not None:
        torch.set_num_threads(how.threads)
    opened = {str(path): open_model(path, how.threads) for path in files}
    (first, *others) = opened.values()
    beside = others or first.pruned is None
    speed = _of_files(opened, how) if beside else _of_pruned(first.pruned, how)  # type: ignore[arg-type]
    for target, text in ((how.json, speed.to_json(orient="records", indent=1)), (how.csv, speed.to_csv(index=False))):
        if target is not None:
            write_text(text, target)
    about = speed.iloc[0]
    yield f"{about['device_name']}, {about['threads']} threads, {about['dtype']}, torch {about['torch']}"
    if not beside and first.pruned is not None and first.pruned.keep_masks:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if reason := path_for(device, dtype_of(how.dtype), first.pruned.block_shape[1]).reason:
            yield f"no kernel, pruned layers take as long as dense ones: {reason}"
    yield markdown(_shown(speed), text_columns=1).rstrip()
    yield f"speed-up: over '{about['reference']}'; times of '{about['reference']}' and the others are interleaved"


def _of_pruned(pruned: Pruned, how: Bench) -> pd.DataFrame:
    """The compressed model beside the dense one, whose weights are random, which does not change its speed."""
    for engine in how.engines:
        if engine not in ENGINES:
            raise LpvitError(f"--engines: found '{engine}'{nearest(engine, ENGINES)}")
    require_engines(how.engines)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = Benchmark(
        batch_sizes=tuple(how.batch_sizes),
        configurations=("dense", "masked", "sparse") if pruned.keep_masks else ("dense", "masked"),
        dtype=how.dtype,
        seconds=how.seconds,
        energy_seconds=0.01,
    )
    images = torch.randn(CALIBRATION, *input_size(pruned.model), generator=torch.Generator().manual_seed(0))
    rivals = Rivals(how.engines, [image[None] for image in images], [])
    dense = _dense_form(pruned)
    masks, shape = pruned.keep_masks, pruned.block_shape
    with _silent_energy():
        speed = benchmark(dense, pruned.model, masks, shape, settings, device, rivals).speed
    if pruned.keep_masks:
        return speed
    names = speed["configuration"].str.replace("^masked", "compressed", regex=True)  # nothing is masked in factors
    return speed.assign(configuration=names)


@contextmanager
def _silent_energy() -> Iterator[None]:
    """Silences the warning that energy is not measured: it is no part of the command."""
    logger = logging.getLogger("lpvit.measure.power")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _dense_form(pruned: Pruned) -> torch.nn.Module:
    """The architecture without the edits that removed something, with random weights."""
    architecture = pruned.architecture
    dtype = next(pruned.model.parameters()).dtype
    kept = [edit for edit in architecture.edits if not edit.removes and edit.kind != "quantisation"]
    return architecture.with_edits(kept).build().to(dtype)


def _of_files(opened: dict[str, Opened], how: Bench) -> pd.DataFrame:
    """Files as they are, in float32 on the CPU, in turns; the first is the reference."""
    if how.engines or how.dtype != "float32":
        raise LpvitError("--engines and --dtype: are for one compressed model, which is timed beside its dense form")
    sizes = {path: _input_size(path, each) for path, each in opened.items()}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{path}: {'x'.join(map(str, size))}" for path, size in sizes.items())
        raise LpvitError(f"models of different image sizes cannot be compared ({told})")
    tables = []
    reference, *_ = opened
    for batch_size in how.batch_sizes:
        images = torch.randn(batch_size, *sizes[reference], generator=torch.Generator().manual_seed(0))
        functions = {path: partial(each.run, images) for path, each in opened.items()}
        times = time_in_turns(functions, device="cpu", seconds=how.seconds)
        tables.append(speed_table(times, batch_size, reference))
    about = facts(torch.device("cpu"), torch.float32)
    return pd.concat(tables, ignore_index=True).assign(**about)


def _input_size(path: str, opened: Opened) -> tuple[int, int, int]:
    if opened.model is not None:
        return input_size(opened.model)
    return opened.require_description(Path(path)).preprocessing.input_size


def _shown(speed: pd.DataFrame) -> pd.DataFrame:
    columns = {
        "configuration": speed["configuration"],
        "batch size": speed["batch_size"].astype(str),
        "ms, median": speed["milliseconds"].map("{:.2f}".format),
        "95 % interval": [*map("{:.2f} to {:.2f}".format, speed["milliseconds_low"], speed["milliseconds_high"])],
        "min": speed["milliseconds_min"].map("{:.2f}".format),
        "max": speed["milliseconds_max"].map("{:.2f}".format),
        "images/s": speed["images_per_second"].map("{:.0f}".format),
        "speed-up": [
            f"{row.speed_up:.2f} ({row.speed_up_low:.2f} to {row.speed_up_high:.2f})" for row in speed.itertuples()
        ],
    }
    return pd.DataFrame(columns)
