"""The dense model and calibration images in, a narrower dense model out, with no layer masked."""

from lpvit.config import Pruning
from lpvit.data import evaluation_loader
from lpvit.masks import save_masks
from lpvit.models import load_model, save_model
from lpvit.narrowing import narrow
from lpvit.schemas import SAMPLES, read_parquet
from lpvit.stage import stage

with stage(snakemake) as compute:
    pruning = Pruning.model_validate(snakemake.params.pruning)
    architecture, state = load_model(snakemake.input.dense, "dense")
    model = architecture.build(state).to(compute.device)
    samples = read_parquet(snakemake.input.samples, SAMPLES)
    loader = evaluation_loader(samples, snakemake.params.dataset, model, pruning.batch_size, compute)
    narrower = narrow(model, loader, snakemake.params.macs).cpu()
    save_masks({}, pruning.block_shape, snakemake.output.masks)
    save_model(architecture.narrowed_to(narrower), narrower.state_dict(), snakemake.output.pruned, "pruned")
