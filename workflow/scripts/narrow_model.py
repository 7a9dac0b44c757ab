"""The dense model and calibration images in, a narrower dense model out, with no layer masked."""

import lpvit.stages.preloaded  # noqa: F401 - continues in a process that has imported torch
from lpvit.models.architecture import Architecture, extended, save_model
from lpvit.schemes.edit import schemes_added
from lpvit.stages.calibrated import read_calibrated
from lpvit.stages.stage import stage
from lpvit.structures.blocks.masks import save_masks
from lpvit.structures.width.structure import WidthStructure

with stage(snakemake) as compute:
    params, dense = snakemake.params, read_calibrated(snakemake, compute)
    narrower = WidthStructure().compress_to(
        dense.model.to(compute.device), dense.images, params.macs, refit=params.refit
    )
    save_masks({}, (1, 1), snakemake.output.masks)
    model = extended(Architecture.of(narrower.model), narrower.model.state_dict(), schemes_added(params.schemes))
    save_model(*model, snakemake.output.pruned, "pruned")
