"""Speed of block-sparse layers inside OpenVINO, without torch.

    python benchmarks/inside_openvino.py --width 384 --batch-size 8 --output rows.csv

Models as in `engines.py`, half of the blocks pruned at random, one thread, processor time. Interleaved for
every precision: the dense model in OpenVINO, ours by `lpvit.sparsify`, and ours by `lpvit.export_openvino`.
`kept` is (dense - inside) / (dense - outside), the median over the rounds. `--profile` prints OpenVINO's time by
operation.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import openvino
import pandas as pd
import torch
from engines import CALIBRATION, at_random, build_configurations
from rows import append
from torch import Tensor

import lpvit
from lpvit.benchmark.engines import Exported, openvino_options
from lpvit.benchmark.speed import require_equal
from lpvit.measure.timing import calm_clock, time_in_turns
from lpvit.models.sources.timm import create_model, input_size
from lpvit.precisions import SPARSE

ENGINES = {"float32": "openvino_float32", "bfloat16": "openvino_bfloat16", "int8": "openvino_int8_bfloat16"}  # fastest


@torch.no_grad()
def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    options = {"embed_dim": arguments.width, "num_heads": arguments.width // 64}
    dense = create_model("deit_tiny_patch16_224", 1000, options)
    pruned = at_random(dense, arguments.kept)
    quantised = lpvit.quantise(pruned, quantisation=lpvit.Quantisation(rounding="nearest"))
    calibration = torch.randn(CALIBRATION, *input_size(dense), generator=torch.Generator().manual_seed(0))
    images = calibration[: arguments.batch_size]
    models = {"dense": Exported(dense, [calibration]), "masked": Exported(pruned.model, [calibration])}
    wanted = argparse.Namespace(engines=list(ENGINES.values()), masked=[], ours=SPARSE, compiled=False)
    setups: dict[str, Callable[[Tensor], Tensor]] = build_configurations(models, pruned, quantised, images, wanted)
    with TemporaryDirectory() as folder:
        for precision in SPARSE:
            file = Path(folder, f"{precision}.xml")
            lpvit.export_openvino(quantised if precision == "int8" else pruned, file, precision)
            run = compiled(file, precision, len(images), arguments.profile)
            setups[f"inside_{precision}"] = run
            if precision != "int8":
                require_equal(f"inside_{precision}", run(images), pruned.model(images), precision)
        functions = {name: partial(setup, images) for name, setup in setups.items() if name != "dense_torch_float32"}
        times = time_in_turns(functions, device="cpu", seconds=arguments.seconds, clock=calm_clock("cpu"))
    rows = table(times).assign(
        model=f"DeiT, width {arguments.width}", batch_size=len(images), kept_blocks=arguments.kept
    )
    append(rows, arguments.output)


def compiled(file: Path, precision: str, batch_size: int, profile: bool) -> Callable[[Tensor], Tensor]:
    """An exported model on one thread of OpenVINO, for a fixed number of images, as those of `Exported`."""
    core = openvino.Core()
    core.add_extension(file.with_name("lpvit_openvino.so"))
    model = core.read_model(file)
    model.reshape({"images": [batch_size, *list(model.input("images").partial_shape)[1:]]})
    options = openvino_options(1, "float32" if precision == "float32" else "bfloat16")
    request = core.compile_model(model, "CPU", options).create_infer_request()
    if profile:
        print(f"\n{precision}\n{profiled(core.compile_model(model, 'CPU', options | {'PERF_COUNT': True}), model)}")
    return lambda images: torch.from_numpy(request.infer({0: images.numpy()})[0].copy())


def profiled(model: Any, source: Any) -> str:
    """Wall-clock milliseconds of every kind of node, in one pass after some others."""
    request = model.create_infer_request()
    for _ in range(3):
        request.infer({0: np.zeros(source.input("images").shape, np.float32)})
    nodes = pd.DataFrame(
        (node.node_type, node.exec_type, 1e3 * node.real_time.total_seconds()) for node in request.profiling_info
    ).set_axis(["node", "kernel", "ms"], axis=1)
    kinds = nodes.query("ms > 0").groupby(["node", "kernel"])["ms"].agg(["count", "sum"])
    return str(kinds.sort_values("sum", ascending=False).head(8).to_markdown(floatfmt=".2f"))


def table(times: dict[str, np.ndarray]) -> pd.DataFrame:
    """A row per precision: milliseconds, medians over the rounds, and the share of the gain that is kept."""
    rows = []
    for precision, engine in ENGINES.items():
        setups = {"dense": f"dense_{engine}", "outside": f"sparse_{precision}", "inside": f"inside_{precision}"}
        dense, outside, inside = (times[setup] for setup in setups.values())
        milliseconds = {name: 1e3 * float(np.median(times[setup])) for name, setup in setups.items()}
        kept = float(np.median((dense - inside) / (dense - outside)))
        rows.append({"precision": precision, **milliseconds, "kept": kept, "rounds": len(dense)})
    return pd.DataFrame(rows)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--kept", type=float, default=0.5, help="share of the blocks of every layer")
    parser.add_argument("--seconds", type=float, default=0, help="per configuration; at least 7 rounds")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--output", type=Path, help="CSV to append to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
