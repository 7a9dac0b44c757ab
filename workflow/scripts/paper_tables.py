"""Metrics of all experiments that reproduce a row of the paper in, the paper's table and ours out."""

import lpvit.stages.preloaded  # noqa: F401 - continues in a process that has imported torch
from lpvit.report.tables.paper import paper_macs, paper_markdown, paper_table
from lpvit.stages.stage import stage
from lpvit.store.artifacts import write_text
from lpvit.store.schemas import COSTS, LAYERS, METRICS
from lpvit.store.tables import read_parquet

with stage(snakemake):
    files = zip(*(snakemake.input[name] for name in ("dense", "final", "layers", "costs")), strict=True)
    table = paper_table(
        {
            **row,
            "dense": read_parquet(dense, METRICS).iloc[0],
            "final": read_parquet(final, METRICS).iloc[0],
            "paper_macs": paper_macs(read_parquet(layers, LAYERS), read_parquet(costs, COSTS), row["window_tokens"]),
        }
        for row, (dense, final, layers, costs) in zip(snakemake.params.rows, files, strict=True)
    )
    write_text(table.to_csv(index=False), snakemake.output.csv)
    write_text(paper_markdown(table, snakemake.params.proxy), snakemake.output.markdown)
