"""A model's name and the dataset's images in, the trained dense model and the costs of its layers out."""

import lpvit.stages.preloaded  # noqa: F401 - continues in a process that has imported torch
from lpvit.costs.cost import measure_costs
from lpvit.data.index import class_names
from lpvit.models.architecture import save_model
from lpvit.models.labels import require_labels_of_weights
from lpvit.models.settings import Model
from lpvit.models.sources.dense import dense_model
from lpvit.stages.stage import stage
from lpvit.stages.training import history_table, read_training
from lpvit.store.schemas import COSTS, HISTORY, IMAGES
from lpvit.store.tables import read_parquet, write_parquet
from lpvit.training.train import train

with stage(snakemake) as compute:
    images = read_parquet(snakemake.input.images, IMAGES)
    settings, classes = Model.model_validate(snakemake.params.model), class_names(images)
    require_labels_of_weights(settings, classes)
    architecture, model = dense_model(settings, classes)
    training = read_training(snakemake, compute, architecture, model.state_dict())
    trained = train(training)
    save_model(architecture, trained.state, snakemake.output.dense, "dense")
    write_parquet(measure_costs(model), snakemake.output.costs, COSTS)
    write_parquet(history_table(trained.history), snakemake.output.history, HISTORY)
    training.resume_file.unlink(missing_ok=True)
