"""The dense model and calibration images in, a narrower dense model out, with no layer masked."""

from lpvit.models.architecture import save_model, with_schemes
from lpvit.schemes import kinds as _  # noqa: F401 - this stage depends on all of them
from lpvit.stages.calibrated import read_calibrated
from lpvit.stages.stage import stage
from lpvit.structures.blocks.masks import save_masks
from lpvit.structures.width.narrowing import narrow

with stage(snakemake) as compute:
    dense = read_calibrated(snakemake, compute)
    narrower = narrow(dense.model, dense.loader, snakemake.params.macs, snakemake.params.reconstruct).cpu()
    architecture = dense.architecture.narrowed_to(narrower)
    extended = with_schemes(architecture, narrower.state_dict(), snakemake.params.schemes)
    save_masks({}, dense.pruning.block_shape, snakemake.output.masks)
    save_model(*extended, snakemake.output.pruned, "pruned")
