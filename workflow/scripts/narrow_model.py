"""The dense model and calibration images in, a narrower dense model out, with no layer masked."""

from lpvit.models.architecture import save_model
from lpvit.stages.calibrated import read_calibrated
from lpvit.stages.stage import stage
from lpvit.weights.masks import save_masks
from lpvit.weights.narrowing import narrow

with stage(snakemake) as compute:
    dense = read_calibrated(snakemake, compute)
    narrower = narrow(dense.model, dense.loader, snakemake.params.macs).cpu()
    architecture = dense.architecture.narrowed_to(narrower)
    save_masks({}, dense.pruning.block_shape, snakemake.output.masks)
    save_model(architecture, narrower.state_dict(), snakemake.output.pruned, "pruned")
