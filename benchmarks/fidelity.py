"""Accuracy of rate-distortion curves: predicted against measured by masking, on the same images.

    python benchmarks/fidelity.py --config benchmarks/configs/cifar10.yaml --dataset cifar10 --model given

Prints a table and draws ``fidelity.png`` to ``results/benchmarks/<dataset>/<model>``. Seconds are of processor time.
"""

import argparse
import time
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from subject import add_arguments, read_subject
from tqdm import tqdm

from lpvit.models.analysis.layers import LayerSpec
from lpvit.structures.blocks.calibration import StatisticInputs, block_statistics
from lpvit.structures.blocks.distortions.gauss_newton import GaussNewtonDistortion
from lpvit.structures.blocks.masking import MeasuredModel, masked_curves
from lpvit.structures.blocks.rate_distortion import rate_distortion_curves
from lpvit.structures.blocks.saliencies.gauss_newton import GaussNewtonSaliency
from lpvit.structures.blocks.scores import block_table
from lpvit.structures.blocks.settings import Blocks

PROBES = (1, 2, 4, 8)
CORRECTION_IMAGES = (0, 32, 64)
AT = (0.1, 0.3, 0.5)


def main() -> None:
    arguments = parse_arguments()
    subject = read_subject(arguments)
    model, layers, device = subject.model, subject.layers, subject.compute.device
    images = subject.calibration(arguments.images, seed=0)
    shape, points = tuple(arguments.block_shape), arguments.points

    inputs, ranking = StatisticInputs(model, images, layers, shape, device), GaussNewtonSaliency()
    ranked = Blocks(block_shape=shape, saliency=ranking, distortion="gauss_newton", probes=max(PROBES))
    blocks = block_table(block_statistics(inputs, ranked.statistics), ranking)
    dense = MeasuredModel(model, images, layers, shape, device)
    measured, seconds = timed(lambda: masked_curves(dense, blocks, points))
    rows = [{"curve": "empirical", "seconds": seconds}]
    curves = {}
    for pruning in tqdm(list(predictions(shape, points)), desc="predictions"):

        def predict(pruning: Blocks = pruning) -> pd.DataFrame:
            statistics = block_statistics(inputs, pruning.statistics)
            return rate_distortion_curves(statistics, blocks, pruning, model, images, device)

        predicted, seconds = timed(predict)
        curves[name(pruning)] = predicted
        rows.append({"curve": name(pruning), "seconds": seconds} | errors(predicted, measured, layers))
    folder = subject.config.results / "benchmarks" / subject.dataset / subject.name
    folder.mkdir(parents=True, exist_ok=True)
    table = markdown(pd.DataFrame(rows))
    (folder / "fidelity.md").write_text(table)
    plot(curves, measured).savefig(folder / "fidelity.png", dpi=150)
    print(table)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--block-shape", type=int, nargs=2, default=(16, 16))
    parser.add_argument("--points", type=int, default=11, help="sparsities of a curve")
    return parser.parse_args()


def predictions(shape: tuple[int, int], points: int) -> Iterator[Blocks]:
    """The predicted curves that are compared; all with the same ranking of blocks."""
    common = {"block_shape": shape, "points": points}
    for probes in PROBES:
        for images in CORRECTION_IMAGES:
            yield Blocks(distortion=GaussNewtonDistortion(correction_images=images), probes=probes, **common)
    yield Blocks(distortion=GaussNewtonDistortion(form="diagonal"), probes=2, **common)


def name(pruning: Blocks) -> str:
    distortion = pruning.distortion
    corrected = f", corrected on {distortion.correction_images} images" if distortion.correction_images else ""
    form = "" if distortion.form == "cumulative" else f", {distortion.form}"
    return f"gauss_newton, probes {pruning.probes}{form}{corrected}"


def timed(function: Callable[[], pd.DataFrame]) -> tuple[pd.DataFrame, float]:
    started = time.process_time()
    result = function()
    return result, time.process_time() - started


def errors(predicted: pd.DataFrame, measured: pd.DataFrame, layers: list[LayerSpec]) -> dict[str, float]:
    """Medians over the layers of abs(predicted / measured - 1); by role, of predicted / measured up to half pruned."""
    ratio = predicted["distortion"] / measured["distortion"]
    half = (measured["sparsity"] > 0) & (measured["sparsity"] <= 0.5)
    error = {f"at {at:.0%}": (ratio[np.isclose(measured["sparsity"], at)] - 1).abs().median() for at in AT}
    error["up to half"] = (ratio[half] - 1).abs().median()
    role = measured["layer"].map({layer.name: layer.role for layer in layers})
    return error | {f"{of} ratio": ratio[half & (role == of)].median() for of in role.unique()}


def markdown(rows: pd.DataFrame) -> str:
    rows.insert(1, "times cheaper", rows.loc[0, "seconds"] / rows["seconds"])
    lines = [list(rows.columns), ["---"] + ["---:"] * (len(rows.columns) - 1)]
    for curve, *values in rows.itertuples(index=False):
        lines += [[str(curve), *("-" if np.isnan(value) else f"{value:.3g}" for value in values)]]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def plot(curves: dict[str, pd.DataFrame], measured: pd.DataFrame) -> Figure:
    """Predicted over measured distortion, a line per layer, for uncorrected and corrected curves."""
    figure = Figure(figsize=(3.2 * len(curves) ** 0.5 + 3, 9), layout="constrained")
    panels = figure.subplots(-(-len(curves) // 3), 3, sharex=True, sharey=True, squeeze=False).ravel()
    for panel, (title, predicted) in zip(panels, curves.items(), strict=False):
        for layer, of_layer in measured.groupby("layer", sort=False):
            ratio = predicted.loc[predicted["layer"] == layer, "distortion"].to_numpy()[1:] / of_layer["distortion"][1:]
            panel.plot(100 * of_layer["sparsity"][1:], ratio, linewidth=0.8)
        panel.axhspan(0.95, 1.05, color="0.85", zorder=0)
        panel.set_title(title, fontsize=7)
        panel.set_ylim(0, 2)
    for panel in panels[len(curves) :]:
        panel.set_axis_off()
    figure.supxlabel("sparsity of the layer, %")
    figure.supylabel("predicted / measured distortion")
    return figure


if __name__ == "__main__":
    main()
