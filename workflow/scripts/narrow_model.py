"""The dense model and calibration images in, a narrower dense model out, with no layer masked."""

from lpvit.models.architecture import Architecture, extended, save_model
from lpvit.schemes.edit import schemes_added
from lpvit.stages.calibrated import read_calibrated
from lpvit.stages.stage import stage
from lpvit.structures.blocks.masks import save_masks
from lpvit.structures.width.narrowing import narrow

with stage(snakemake) as compute:
    dense = read_calibrated(snakemake, compute)
    narrower = narrow(dense.model, dense.loader, snakemake.params.macs, snakemake.params.reconstruct).cpu()
    schemes = schemes_added(snakemake.params.schemes)
    save_masks({}, dense.pruning.block_shape, snakemake.output.masks)
    model = extended(Architecture.of(narrower), narrower.state_dict(), schemes)
    save_model(*model, snakemake.output.pruned, "pruned")
