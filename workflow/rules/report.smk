include: "report_files.smk"


rule summarize:
    """Collects the results of all experiments."""
    input:
        metrics=[f"{evaluation['folder']}/metrics.parquet" for evaluation in evaluations],
    output:
        markdown=f"{REPORT}/summary.md",
        csv=f"{REPORT}/summary.csv",
    params:
        evaluations=evaluations,
        sources=sources("summarize.py"),
    log:
        f"{REPORT}/summary.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/summarize.py"


rule write_page:
    """Writes the page of the report, and a short form of it for Snakemake's report."""
    input:
        **page_inputs(),
    output:
        page=f"{REPORT}/index.html",
        glance=report(
            f"{REPORT}/glance.html",
            caption="../report/page.rst",
            category="At a glance",
            labels={"page": "all experiments"},
        ),
    params:
        **page_params(),
        sources=sources("write_page.py"),
    log:
        f"{REPORT}/index.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/write_page.py"


rule trace_frontier:
    """Computes the trade-off of two budgets at equal distortion."""
    input:
        blocks=last_step("blocks.parquet"),
        curves=last_step("curves.parquet"),
        costs=costs_of,
        latency=latency_of,
    output:
        frontier=f"{BUDGET}/frontier.parquet",
    params:
        budget=lambda wildcards: chosen(budget_of(wildcards), without="reconstruction"),
        pruning=compression_of,
        energy=energy_of,
        given=latency_stamp_of,
        sources=sources("trace_frontier.py"),
    log:
        f"{BUDGET}/frontier.log",
    resources:
        mem_mb=scaled(8_000),
        runtime=scaled(30),
        gpu=0,
    conda:
        ENVIRONMENT
    script:
        "../scripts/trace_frontier.py"
