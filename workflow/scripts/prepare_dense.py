"""A model's name and the dataset's images in, the dense model and what its layers cost out."""

from pathlib import Path

from lpvit.costs.cost import measure_costs
from lpvit.models.architecture import save_model
from lpvit.models.settings import Model
from lpvit.models.sources.dense import dense_model
from lpvit.stages.stage import stage
from lpvit.stages.training import read_training
from lpvit.store.schemas import COSTS, HISTORY, IMAGES, empty_frame, read_parquet, write_parquet
from lpvit.training.train import train

with stage(snakemake) as compute:
    images = read_parquet(snakemake.input.images, IMAGES)
    architecture, model = dense_model(Model.model_validate(snakemake.params.model), images["label"].nunique())
    state, history = model.state_dict(), empty_frame(HISTORY)
    if snakemake.params.recipe is not None:
        state, history, _ = train(read_training(snakemake, compute, architecture, state))
    save_model(architecture, state, snakemake.output.dense, "dense")
    write_parquet(measure_costs(model), snakemake.output.costs, COSTS)
    write_parquet(history, snakemake.output.history, HISTORY)
    Path(snakemake.params.resume).unlink(missing_ok=True)
