"""The tables of the paper: experiments that reproduce a published row."""


include: "paper_files.smk"


rule paper_tables:
    """Compares published accuracy and MACs with ours, for every row of the paper's tables."""
    input:
        dense=[f"{dense_of(experiment)}/metrics.parquet" for experiment in reproduced.values()],
        final=[f"{reproduced_by(experiment)}/metrics.parquet" for experiment in reproduced.values()],
        layers=[f"{reproduced_by(experiment)}/layers.parquet" for experiment in reproduced.values()],
        costs=[costs_of_row(experiment) for experiment in reproduced.values()],
    output:
        markdown=f"{REPORT}/paper.md",
        csv=f"{REPORT}/paper.csv",
    params:
        rows=[row_of(name) for name in reproduced],
        proxy=settings.scale == "proxy",
        sources=sources("paper_tables.py"),
    log:
        f"{REPORT}/paper.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/paper_tables.py"
