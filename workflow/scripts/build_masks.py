"""Options and an allocation in, keep masks and the pruned model out; optionally refitted and with schemes."""

import lpvit.stages.preloaded  # noqa: F401 - continues in a process that has imported torch
from lpvit.models.architecture import Architecture, extended, save_model
from lpvit.schemes.edit import schemes_added
from lpvit.stages.calibrated import read_calibrated
from lpvit.stages.inputs import structure_asked
from lpvit.stages.stage import stage
from lpvit.store.schemas import ALLOCATION, BLOCKS
from lpvit.store.tables import read_parquet
from lpvit.structures.blocks.masks import save_masks

with stage(snakemake) as compute:
    dense, structure = read_calibrated(snakemake, compute), structure_asked(snakemake)
    choice = structure.choose(
        read_parquet(snakemake.input.blocks, BLOCKS), read_parquet(snakemake.input.allocation, ALLOCATION)
    )
    statistics = structure.load_statistics(snakemake.input.statistics) if structure.compresses_by_statistics else None
    pruned = structure.compress(dense.model, choice, statistics, dense.images, compute.device)
    save_masks(pruned.keep_masks, pruned.block_shape or (1, 1), snakemake.output.masks)
    schemes = schemes_added(snakemake.params.schemes)
    model = extended(Architecture.of(pruned.model), pruned.model.state_dict(), schemes)
    save_model(*model, snakemake.output.pruned, "pruned")
