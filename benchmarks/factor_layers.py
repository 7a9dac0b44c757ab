"""Low-rank factors in stock OpenVINO: which ranks run well, and int8 with a wide intermediate.

    python benchmarks/factor_layers.py ranks --output ranks.csv
    python benchmarks/factor_layers.py intermediate --folder models/given --macs 0.5 0.25
    python benchmarks/factor_layers.py intermediate --folder models/deit_small --macs 0.5 --batch-size 8

`ranks`: single layers of the shapes of a DeiT, dense and as two products, interleaved, one thread, processor time.
`of_dense` is the speed-up over the dense layer, the median over the rounds; `reached` is that over the ratio of
multiply-adds. `intermediate`: models of `deployment.py` in int8 by NNCF, with all products quantised, or without the
first or the second of every factorised layer: the mean squared change of the logits against the same model in float32
(`rounding`), and the speed-up over it, interleaved.
"""

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pandas as pd
import subject
import torch
from deployment import Candidate, logits_of
from deployment_models import configurations, read_images
from openvino import opset13 as op
from rows import append
from torch import Tensor

from lpvit.benchmark.engines import openvino_options, quantised_by_nncf
from lpvit.measure.timing import calm_clock, time_in_turns

TOKENS = 197
SHARES = (0.5, 0.9)  # of the rank at which factors cost as much as the dense layer
MULTIPLES = (8, 16, 32, 64)


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    rows = ranks(arguments) if arguments.what == "ranks" else intermediate(arguments)
    append(rows, arguments.output)


def ranks(arguments: argparse.Namespace) -> pd.DataFrame:
    """One row per layer, rank and precision."""
    width, tokens = arguments.width, TOKENS * arguments.batch_size
    parts = []
    for outputs, inputs in ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width)):
        break_even = outputs * inputs / (outputs + inputs)
        near = [share * break_even for share in SHARES]
        chosen = {multiple * round(rank / multiple) for rank in near for multiple in MULTIPLES} - {0}
        for precision in arguments.precisions:
            shapes = {0: [(outputs, inputs)], **{rank: [(rank, inputs), (outputs, rank)] for rank in sorted(chosen)}}
            functions = {rank: layer(matrices, tokens, precision) for rank, matrices in shapes.items()}
            times: Mapping[Any, np.ndarray] = time_in_turns(
                functions,  # type: ignore[arg-type]  # by rank
                device="cpu",
                seconds=arguments.seconds,
                clock=calm_clock("cpu"),
            )
            parts += [
                {
                    **{"outputs": outputs, "inputs": inputs, "batch_size": arguments.batch_size},
                    **{"precision": precision, "rank": rank, "milliseconds": 1e3 * float(np.median(seconds))},
                    "of_dense": (speed_up := float(np.median(times[0] / seconds))),
                    "reached": speed_up * (rank / break_even if rank else 1),
                }
                for rank, seconds in times.items()
            ]
    return pd.DataFrame(parts)


def layer(matrices: list[tuple[int, int]], tokens: int, precision: str) -> Callable[[], object]:
    """A pass of a layer of one or two random matrices (O, I) in OpenVINO, with a bias."""
    generator = np.random.default_rng(0)
    given = op.parameter([1, tokens, matrices[0][1]], np.float32)
    outputs: Any = given
    for shape in matrices:
        weight = generator.standard_normal(shape, np.float32) / shape[1] ** 0.5
        outputs = op.matmul(outputs, op.constant(weight), False, True)
    outputs = op.add(outputs, op.constant(generator.standard_normal(matrices[-1][0], np.float32)))
    model = openvino.Model([outputs], [given])
    if precision == "int8":
        model = quantised_by_nncf(model, [torch.randn(2, tokens, matrices[0][1])])
    options = openvino_options(1, "float32" if precision == "int8" else precision)
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    inputs = generator.standard_normal(tuple(given.shape), np.float32)
    return partial(request.infer, {0: inputs})


@torch.no_grad()
def intermediate(arguments: argparse.Namespace) -> pd.DataFrame:
    """One row per model and choice of quantised products."""
    found = read_images(arguments.folder)
    images = torch.cat([batch for batch, _ in found.tests] or found.calibration)[: arguments.images]
    rows = []
    for name, (method, kept) in configurations(["factors"], arguments.macs).items():
        exported = (candidate := Candidate(arguments.folder, name, method, kept)).exported
        source = openvino.Core().read_model(exported.evened)
        reduce, expand = products_of_factors(source)
        wide = {"none": [], "expand": expand, "reduce": reduce, "both": [*reduce, *expand]}
        runs = {
            kept_wide: in_int8(source.clone(), exported.calibration, names, arguments.batch_size)
            for kept_wide, names in wide.items()
        }
        runs["all (float32)"] = exported.run_by("openvino_float32", arguments.batch_size, 1)
        logits = logits_of(candidate.pruned.model, images)
        timed: Any = {kept_wide: partial(run, images[: arguments.batch_size]) for kept_wide, run in runs.items()}
        times = time_in_turns(timed, device="cpu", seconds=arguments.seconds, clock=calm_clock("cpu"))
        for kept_wide, run in runs.items():
            change = subject.squared_change(logits_of(run, images, arguments.batch_size), logits)
            speed_up = float(np.median(times["all (float32)"] / times[kept_wide]))
            rows.append({"model": name, "wide": kept_wide, "rounding": change, "of_float32": speed_up})
    return pd.DataFrame(rows).assign(folder=arguments.folder.name, images=len(images), batch_size=arguments.batch_size)


def products_of_factors(model: Any) -> tuple[list[str], list[str]]:
    """Names of the first and second products of factorised layers: the second takes what the first gives, as it is."""
    reduce, expand = [], []
    for node in model.get_ordered_ops():
        before = node.input_value(0).get_node() if node.get_type_name() == "MatMul" else None
        if before is not None and before.get_type_name() == "MatMul":
            reduce.append(before.get_friendly_name())
            expand.append(node.get_friendly_name())
    assert reduce, "the model has no factors"
    return reduce, expand


def in_int8(model: Any, calibration: Any, wide: list[str], batch_size: int) -> Callable[[Tensor], Tensor]:
    """A model of OpenVINO quantised by NNCF but for some operations, on one thread."""
    model = quantised_by_nncf(model, calibration, wide)
    model.reshape({"images": [batch_size, *calibration[0].shape[1:]]})
    request = openvino.Core().compile_model(model, "CPU", openvino_options(1, "int8")).create_infer_request()
    return lambda images: torch.from_numpy(request.infer({0: images.numpy()})[0].copy())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    for name in ("ranks", "intermediate"):
        command = commands.add_parser(name)
        command.add_argument("--batch-size", type=int, default=8)
        command.add_argument("--seconds", type=float, default=0, help="per configuration; at least 7 rounds")
        command.add_argument("--output", type=Path, help="CSV to append to")
    commands.choices["ranks"].add_argument("--width", type=int, default=384)
    commands.choices["ranks"].add_argument("--precisions", nargs="+", default=["float32", "bfloat16", "int8"])
    models = commands.choices["intermediate"]
    models.add_argument("--folder", type=Path, required=True, help="of `deployment.py make`")
    models.add_argument("--macs", nargs="+", type=float, default=[0.5])
    models.add_argument("--images", type=int, default=512, help="test images, in multiples of the batch size")
    return parser.parse_args()


if __name__ == "__main__":
    main()
