"""What pairs of layers share of their distortion in, its picture out."""

from lpvit.report import plot_interactions, save_figure
from lpvit.schemas import COSTS, INTERACTIONS, read_parquet
from lpvit.stage import stage

with stage(snakemake):
    interactions = read_parquet(snakemake.input.interactions, INTERACTIONS)
    costs = read_parquet(snakemake.input.costs, COSTS)
    save_figure(plot_interactions(interactions, costs), snakemake.output.figure)
