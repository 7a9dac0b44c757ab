"""The dense model and calibration images in, a narrower dense model out, with no layer masked."""

import lpvit.stages.preloaded  # noqa: F401 - goes on in a process that has imported torch
from lpvit.models.architecture import save_model, with_schemes
from lpvit.schemes import kinds as _  # noqa: F401 - this stage depends on all of them
from lpvit.stages.calibrated import read_calibrated
from lpvit.stages.stage import stage
from lpvit.structures.blocks.masks import save_masks
from lpvit.structures.width.structure import WidthStructure

with stage(snakemake) as compute:
    params, dense = snakemake.params, read_calibrated(snakemake, compute)
    narrower = WidthStructure().compress_to(
        dense.model.to(compute.device), dense.images, params.macs, refit=params.refit
    )
    architecture = dense.architecture.narrowed_to(narrower.model)
    extended = with_schemes(architecture, narrower.model.state_dict(), params.schemes)
    save_masks({}, params.block_shape, snakemake.output.masks)
    save_model(*extended, snakemake.output.pruned, "pruned")
