"""The dense model and calibration images in, a narrower dense model out, with no layer masked."""

from lpvit.calibrated import read_calibrated
from lpvit.masks import save_masks
from lpvit.models import save_model
from lpvit.narrowing import narrow
from lpvit.stage import stage

with stage(snakemake) as compute:
    dense = read_calibrated(snakemake, compute)
    narrower = narrow(dense.model, dense.loader, snakemake.params.macs).cpu()
    architecture = dense.architecture.narrowed_to(narrower)
    save_masks({}, dense.pruning.block_shape, snakemake.output.masks)
    save_model(architecture, narrower.state_dict(), snakemake.output.pruned, "pruned")
