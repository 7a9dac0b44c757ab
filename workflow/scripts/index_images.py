"""A dataset in, the list of its images with labels and problems out."""

import lpvit.stages.preloaded  # noqa: F401 - continues in a process that has imported torch
from lpvit.data.index import check_images, index_images
from lpvit.data.settings import ImageSet
from lpvit.stages.stage import stage
from lpvit.store.schemas import IMAGES
from lpvit.store.tables import write_parquet

with stage(snakemake):
    dataset = ImageSet.model_validate(snakemake.params.dataset)
    images = index_images(dataset, snakemake.threads)
    check_images(images, dataset.on_bad_image, dataset.root)
    write_parquet(images, snakemake.output.images, IMAGES)
