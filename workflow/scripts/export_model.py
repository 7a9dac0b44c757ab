"""A pruned or fine-tuned model and its masks in, files for use outside the workflow out."""

import lpvit.stages.preloaded  # noqa: F401 - continues in a process that has imported torch
from lpvit.allocation.settings import Budget
from lpvit.api.checkpoint import save
from lpvit.api.export import export_onnx
from lpvit.api.pruned import Pruned
from lpvit.models.architecture import load_model
from lpvit.stages.stage import stage
from lpvit.structures.blocks.masks import load_masks

with stage(snakemake):
    architecture, state = load_model(snakemake.input.model, snakemake.params.stage)
    keep_masks, block_shape = load_masks(snakemake.input.masks)
    budget = Budget.model_validate(snakemake.params.budget)
    pruned = Pruned(architecture.build(state), keep_masks, block_shape, budget)
    save(pruned, snakemake.output.safetensors)
    export_onnx(pruned, snakemake.output.onnx, **snakemake.params.export)
