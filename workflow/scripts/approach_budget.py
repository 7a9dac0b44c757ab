"""The dense model's scores and curves in, those of what the steps towards the budget leave of it out."""

from lpvit.config import Pruning
from lpvit.data import evaluation_loader
from lpvit.gradual import before_last_step
from lpvit.inputs import allocation_inputs
from lpvit.models import load_model
from lpvit.schemas import BLOCKS, CURVES, SAMPLES, read_parquet, write_parquet
from lpvit.stage import stage

with stage(snakemake) as compute:
    pruning = Pruning.model_validate(snakemake.params.pruning)
    architecture, state = load_model(snakemake.input.dense, "dense")
    model = architecture.build(state)
    samples = read_parquet(snakemake.input.samples, SAMPLES)
    loader = evaluation_loader(samples, snakemake.params.dataset, model, pruning.batch_size, compute)
    blocks, curves = before_last_step(model, loader, pruning, **allocation_inputs(snakemake), device=compute.device)
    write_parquet(blocks, snakemake.output.blocks, BLOCKS)
    write_parquet(curves, snakemake.output.curves, CURVES)
