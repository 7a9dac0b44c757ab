"""What pairs of layers share of their distortion in, its picture out."""

from lpvit.report.figures import plot_interactions
from lpvit.report.looks import save_figure
from lpvit.stages.stage import stage
from lpvit.store.schemas import COSTS, INTERACTIONS, read_parquet

with stage(snakemake):
    interactions = read_parquet(snakemake.input.interactions, INTERACTIONS)
    costs = read_parquet(snakemake.input.costs, COSTS)
    save_figure(plot_interactions(interactions, costs), *snakemake.output)
