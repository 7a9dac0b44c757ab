"""A pruned or fine-tuned model and its masks in, files for use outside the workflow out."""

from lpvit.checkpoint import save
from lpvit.config import Budget
from lpvit.masks import load_masks
from lpvit.models import load_model
from lpvit.onnx import export_onnx
from lpvit.pruned import Pruned
from lpvit.stage import stage

with stage(snakemake):
    architecture, state = load_model(snakemake.input.model, snakemake.params.stage)
    keep_masks, block_shape = load_masks(snakemake.input.masks)
    budget = Budget.model_validate(snakemake.params.budget)
    pruned = Pruned(architecture.build(state), keep_masks, block_shape, budget, architecture)
    save(pruned, snakemake.output.safetensors)
    export_onnx(pruned, snakemake.output.onnx)
