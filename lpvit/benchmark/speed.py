"""Speed and energy of a pruned model compared with the dense one, on this machine.

N = images of a pass; K = classes.
"""

import logging
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lpvit.benchmark.engines import NO_RIVALS, Rivals, Run
from lpvit.benchmark.settings import Benchmark
from lpvit.errors import LpvitError
from lpvit.inference.choice import Choice
from lpvit.inference.sparsify import sparsify_layers
from lpvit.measure.power import measure_energy
from lpvit.measure.timing import Interval, median_interval, time_in_turns
from lpvit.models.outputs import read
from lpvit.models.sources.timm import input_size
from lpvit.precisions import PRECISIONS, dtype_of, name_of
from lpvit.quantisation.layers import int8_layers
from lpvit.sparse.operator import path_for
from lpvit.store.schemas import CHOICES
from lpvit.structures.blocks.grid import KeepMasks
from lpvit.training.evaluation import Accuracy

logger = logging.getLogger(__name__)

LARGEST_BATCH = {"cpu": 128, "cuda": 1024}  # larger ones hardly raise the throughput

Models = Mapping[str, nn.Module]  # dense, masked, sparse


@dataclass(frozen=True)
class Measurements:
    """The result of `benchmark`.

    Attributes:
        speed: Schema ``SPEED`` without ``stage``.
        choices: Schema ``CHOICES``; empty without a block-sparse configuration.
        energy: Schema ``ENERGY``.
    """

    speed: pd.DataFrame
    choices: pd.DataFrame
    energy: pd.DataFrame


@torch.no_grad()
def benchmark(
    dense: nn.Module,
    pruned: nn.Module,
    keep_masks: KeepMasks,
    block_shape: tuple[int, int],
    settings: Benchmark,
    device: torch.device | str,
    rivals: Rivals = NO_RIVALS,
) -> Measurements:
    """Compares the speed of a dense and a pruned model at several batch sizes, and their energy at the largest.

    Args:
        dense: The model before pruning; it and ``pruned`` are moved and cast in place.
        pruned: The same with zeros for pruned weights; or in int8, which torch only emulates, so not timed ``masked``.
        keep_masks: One keep mask (R, C) per layer.
        block_shape: Rows and columns of a block.
        settings: Configurations, batch sizes, dtype and durations.
        device: Where to run.
        rivals: Engines that run both models too, in float32 on the CPU; not for models already in int8.

    Raises:
        LpvitError: A configuration gives wrong logits, or cannot be compiled here.
    """
    in_torch = {"dense": dense} | ({} if int8_layers(pruned) else {"masked": pruned})
    setups = [setup for setup in settings.configurations if setup.startswith(("sparse", *in_torch))]
    exported = rivals.export(in_torch)
    accuracies: dict[str, Accuracy] = {}
    device, dtype = torch.device(device), dtype_of(settings.dtype)
    models = {"dense": dense.to(device, dtype).eval(), "masked": pruned.to(device, dtype).eval()}
    speed, choices = [], []
    for batch_size in _batch_sizes(settings.batch_sizes, models):
        torch.compiler.reset()  # discards code compiled for another batch size
        if any(setup.startswith("sparse") for setup in setups):
            models["sparse"] = deepcopy(models["masked"])
            chosen = sparsify_layers(models["sparse"], keep_masks, block_shape, batch_size)
            choices += [{"batch_size": batch_size, **_choice(choice)} for choice in chosen]
        images = _random_images(dense, batch_size)
        functions = build_configurations(setups, models, images)
        runs = rivals.runs(exported, batch_size, torch.get_num_threads())
        functions |= engine_configurations(runs, {name: export.model for name, export in exported.items()}, images)
        new = (setup for setup in runs if "int8" in setup and setup not in accuracies and rivals.validation)
        accuracies |= {setup: rivals.accuracy(runs[setup]) for setup in new}
        times = time_in_turns(functions, device=device, seconds=settings.seconds)
        speed.append(_logged(speed_table(times, batch_size)))
    energy = measure_energy(functions, batch_size, device=device, seconds=settings.energy_seconds)
    return Measurements(
        speed=with_accuracy(pd.concat(speed, ignore_index=True), accuracies).assign(**facts(device, dtype)),
        choices=pd.DataFrame(choices, columns=[column.name for column in CHOICES.columns]),
        energy=energy,
    )


def build_configurations(setups: Iterable[str], models: Models, images: Tensor) -> dict[str, Callable[[], Tensor]]:
    """One forward pass per configuration; their logits are compared with those of the model without kernels.

    Args:
        setups: ``dense``, ``masked``, ``sparse``, and with ``_compiled`` the same through torch.compile.
        models: By configuration; ``sparse`` must equal ``masked``.
        images: Shape (N, channels, height, width), on the device and in the dtype of the models.

    Raises:
        LpvitError: As `benchmark`.
    """
    functions: dict[str, Callable[[], Tensor]] = {}
    for setup in setups:
        name = setup.removesuffix("_compiled")
        model = models[name] if name == setup else torch.compile(models[name], dynamic=False)
        reference = models["dense" if name == "dense" else "masked"]
        try:
            logits = read(models[name], model(images))
        except torch._dynamo.exc.TorchDynamoException as error:  # base class of torch.compile's errors
            reason = str(error).strip().partition("\n")[0]
            raise LpvitError(
                f"benchmark.configurations: '{setup}' cannot be compiled here ({reason}); leave it out"
            ) from None
        expected = read(reference, reference(images))
        require_equal(setup, logits, expected, "int8" if int8_layers(reference) else name_of(logits.dtype))
        functions[setup] = partial(model, images)
    return functions


def engine_configurations(runs: Mapping[str, Run], models: Models, images: Tensor) -> dict[str, Callable[[], Tensor]]:
    """One pass per engine; engines that do not quantise to int8 themselves are compared with torch.

    Args:
        runs: Configuration -> engine, from `lpvit.benchmark.engines.Rivals.runs`.
        models: In torch, in float32 on the CPU, by the first word of the configurations.
        images: Shape (N, channels, height, width).

    Raises:
        LpvitError: As `benchmark`.
    """
    images = images.cpu().float()
    for setup, run in runs.items():
        if "int8" not in setup:
            name, *_, precision = setup.split("_")
            require_equal(setup, run(images), read(models[name], models[name](images)), precision)
    return {setup: partial(run, images) for setup, run in runs.items()}


def with_accuracy(speed: pd.DataFrame, accuracies: Mapping[str, Accuracy]) -> pd.DataFrame:
    """Adds the columns ``top1`` and ``images`` of ``SPEED``: for configurations whose accuracy was measured."""
    columns = {name: {setup: getattr(of, name) for setup, of in accuracies.items()} for name in ("top1", "images")}
    return speed.join(pd.DataFrame(columns, dtype="float64"), on="configuration")


def require_equal(setup: str, logits: Tensor, expected: Tensor, precision: str) -> None:
    """Raises if the logits of a configuration differ by more than rounding.

    Args:
        setup: Configuration, for the message.
        logits: Shape (N, K).
        expected: Shape (N, K).
        precision: Of the products of the configuration.

    Raises:
        LpvitError: The greatest difference, over the greatest expected logit, is above the tolerance or NaN.
    """
    error = float((logits.double() - expected.double()).abs().max() / expected.double().abs().max())
    tolerance = PRECISIONS[precision].tolerance
    if not error <= tolerance:  # also true for NaN
        raise LpvitError(
            f"benchmark: '{setup}' is off by {error:.2g} of the largest logit, more than {tolerance:g} in "
            f"{precision}; it is not timed, please report this"
        )


def speed_table(
    times: Mapping[str, NDArray[np.float64]], batch_size: int, reference: str | None = None
) -> pd.DataFrame:
    """Medians and ratios of interleaved configurations.

    Args:
        times: Configuration -> seconds of every round.
        batch_size: Images of a pass.
        reference: What the others are compared with; by default the fastest whose name starts with ``dense``.

    Returns:
        Schema ``SPEED`` without ``stage`` and the columns of the machine; the speed-up is over the reference, computed
        round by round, so that load on the machine cancels.
    """
    if reference is None:
        dense = [setup for setup in times if setup.startswith("dense")]
        reference = min(dense, key=lambda setup: median_interval(times[setup]).median)
    rows = []
    for setup, seconds in times.items():
        milliseconds, speed_up = median_interval(1e3 * seconds), median_interval(times[reference] / seconds)
        rows.append(
            {
                "configuration": setup,
                "batch_size": batch_size,
                "rounds": len(seconds),
                **_columns("milliseconds", milliseconds),
                "milliseconds_min": 1e3 * seconds.min(),
                "milliseconds_max": 1e3 * seconds.max(),
                "images_per_second": 1e3 * batch_size / milliseconds.median,
                "reference": reference,
                **_columns("speed_up", speed_up),
            }
        )
    return pd.DataFrame(rows)


def facts(device: torch.device, dtype: torch.dtype) -> dict[str, str | int]:
    """Machine and settings that times depend on: columns of ``SPEED``."""
    return {
        "kernel": path_for(device, dtype).name,
        "dtype": name_of(dtype),
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


def largest_batch(runs: Callable[[int], object], most: int) -> int:
    """The largest power of two, up to ``most``, that runs without exceeding the GPU memory.

    Args:
        runs: Takes the number of images.
        most: Upper limit.
    """
    size = 1
    while 2 * size <= most:
        try:
            runs(2 * size)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        size *= 2
    return size


def _batch_sizes(asked: Sequence[int | str], models: Models) -> list[int]:
    """The requested batch sizes in ascending order, with ``largest`` as a number."""
    device = next(models["dense"].parameters()).device
    most = LARGEST_BATCH[device.type]

    def forward(size: int) -> None:
        for model in models.values():
            model(_random_images(model, size))

    # Not on a CPU: the system would swap or kill the process.
    largest = most if device.type == "cpu" or "largest" not in asked else largest_batch(forward, most)
    return sorted({largest if size == "largest" else int(size) for size in asked})


def _random_images(model: nn.Module, batch_size: int) -> Tensor:
    """Shape (N, channels, height, width), for the model's device and dtype; deterministic."""
    parameter = next(model.parameters())
    images = torch.randn(batch_size, *input_size(model), generator=torch.Generator().manual_seed(0))
    return images.to(parameter.device, parameter.dtype)


def _choice(choice: Choice) -> dict[str, object]:
    columns = asdict(choice)
    for form in ("torch", "kernel"):
        seconds = columns.pop(f"{form}_seconds")
        columns[f"{form}_milliseconds"] = None if seconds is None else 1e3 * seconds
    return columns


def _columns(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.median, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _logged(speed: pd.DataFrame) -> pd.DataFrame:
    for row in speed.itertuples():
        logger.info(
            "batch size %d: %s: %.3f ms, speed-up %.2f over %s",
            *(row.batch_size, row.configuration, row.milliseconds, row.speed_up, row.reference),
        )
    return speed
