"""A pruned model in, the same with schemes out, which a training then fits to it."""

from lpvit.models import schemes as _  # noqa: F401 - this stage depends on all of them
from lpvit.models.architecture import load_model, save_model, with_schemes
from lpvit.models.settings import Scheme
from lpvit.stages.stage import stage
from lpvit.weights.masks import load_masks, save_masks

with stage(snakemake):
    schemes = [Scheme.model_validate(scheme) for scheme in snakemake.params.schemes]
    save_model(*with_schemes(*load_model(snakemake.input.pruned, "pruned"), schemes), snakemake.output.pruned, "pruned")
    save_masks(*load_masks(snakemake.input.masks), snakemake.output.masks)
