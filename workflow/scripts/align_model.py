"""A dense model and calibration images in, the same function in aligned bases and the freedoms that it uses out."""

import lpvit.stages.preloaded  # noqa: F401 - goes on in a process that has imported torch
from lpvit.bases.align import align
from lpvit.models.architecture import Architecture, save_model
from lpvit.stages.calibrated import read_calibrated
from lpvit.stages.stage import stage
from lpvit.store.schemas import FREEDOMS
from lpvit.store.tables import write_parquet

with stage(snakemake) as compute:
    dense = read_calibrated(snakemake, compute)
    aligned, freedoms = align(dense.model, dense.images, snakemake.params.freedoms, compute.device)
    aligned = aligned.cpu()
    save_model(Architecture.of(aligned), aligned.state_dict(), snakemake.output.aligned, "dense")
    write_parquet(freedoms, snakemake.output.freedoms, FREEDOMS)
