"""Inputs of a figure in, the figure out: SVG and PNG for papers, JSON for the page."""

import json

import lpvit.stages.preloaded  # noqa: F401 - continues in a process that has imported torch
from lpvit.report.artifacts import read_artifact
from lpvit.report.drawing import draw, save_figure
from lpvit.report.interactive import interactive
from lpvit.stages.stage import stage
from lpvit.store.artifacts import write_text

with stage(snakemake):
    artifacts = {name: read_artifact(name, file) for name, file in snakemake.input.items()}
    figure = draw(snakemake.wildcards.figure, artifacts | snakemake.params.facts)
    save_figure(figure, snakemake.output.svg, snakemake.output.png)
    write_text(json.dumps(interactive(figure)), snakemake.output.json)
