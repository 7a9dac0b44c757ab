include: "report_files.smk"


rule summarize:
    """Gathers what every experiment reached."""
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
    """Writes the page that people read first, and a short form of it for Snakemake's report."""
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


rule plot_tradeoff:
    """Draws accuracy against MACs for all experiments."""
    input:
        summary=f"{REPORT}/summary.csv",
    output:
        svg=report(
            f"{REPORT}/tradeoff.svg",
            caption="../report/tradeoff.rst",
            category="Results",
            labels={"figure": "accuracy against MACs"},
        ),
        png=f"{REPORT}/tradeoff.png",
    params:
        series=series,
        sources=sources("plot_tradeoff.py"),
    log:
        f"{REPORT}/tradeoff.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/plot_tradeoff.py"


rule plot_curves:
    """Draws the rate-distortion curves of all layers."""
    input:
        curves=f"{PRUNING}/curves.parquet",
        costs=f"{MODEL}/costs.parquet",
    output:
        svg=report(
            f"{PRUNING}/curves.svg",
            caption="../report/curves.rst",
            category="Rate-distortion curves",
            labels=lambda wildcards: {"experiments": sharing(wildcards)},
        ),
        png=f"{PRUNING}/curves.png",
    params:
        pruning=lambda wildcards: chosen(settings.prunings[wildcards.pruning], "block_shape", "distortion", "saliency"),
        unit=lambda wildcards: settings.prunings[wildcards.pruning].distortion.unit,
        sources=sources("plot_curves.py"),
    log:
        f"{PRUNING}/curves.svg.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/plot_curves.py"


rule plot_allocation:
    """Draws the keep ratio of every layer."""
    input:
        allocation=f"{BUDGET}/allocation.parquet",
        costs=costs_of,
    output:
        svg=report(
            f"{BUDGET}/allocation.svg",
            caption="../report/allocation.rst",
            category="Pruned models",
            subcategory=sharing,
            labels={"figure": "keep ratios"},
        ),
        png=f"{BUDGET}/allocation.png",
    params:
        allocator=lambda wildcards: budget_of(wildcards).allocator.name,
        sources=sources("plot_allocation.py"),
    log:
        f"{BUDGET}/allocation.svg.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/plot_allocation.py"


rule trace_frontier:
    """Traces what two budgets could be at equal distortion."""
    input:
        blocks=last_step("blocks.parquet"),
        curves=last_step("curves.parquet"),
        costs=costs_of,
        latency=latency_of,
        allocation=f"{BUDGET}/allocation.parquet",
    output:
        frontier=f"{BUDGET}/frontier.parquet",
        svg=report(
            f"{BUDGET}/frontier.svg",
            caption="../report/frontier.rst",
            category="Pruned models",
            subcategory=sharing,
            labels={"figure": "two budgets"},
        ),
        png=f"{BUDGET}/frontier.png",
    params:
        budget=lambda wildcards: chosen(budget_of(wildcards), without="reconstruction"),
        pruning=lambda wildcards: chosen(settings.prunings[wildcards.pruning], "block_shape"),
        energy=energy_of,
        sources=sources("trace_frontier.py"),
    log:
        f"{BUDGET}/frontier.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/trace_frontier.py"


rule plot_blocks:
    """Draws which blocks stay in a few layers."""
    input:
        masks=f"{BUDGET}/masks.pt",
        costs=costs_of,
    output:
        svg=report(
            f"{BUDGET}/blocks.svg",
            caption="../report/blocks.rst",
            category="Pruned models",
            subcategory=sharing,
            labels={"figure": "block patterns"},
        ),
        png=f"{BUDGET}/blocks.png",
    params:
        pruning=lambda wildcards: chosen(settings.prunings[wildcards.pruning], "block_shape"),
        sources=sources("plot_blocks.py"),
    log:
        f"{BUDGET}/blocks.svg.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/plot_blocks.py"


rule plot_interactions:
    """Draws how far the layers' distortions add up."""
    input:
        interactions=f"{BUDGET}/interactions.parquet",
        costs=costs_of,
    output:
        svg=report(
            f"{BUDGET}/interactions.svg",
            caption="../report/interactions.rst",
            category="Pruned models",
            subcategory=sharing,
            labels={"figure": "interactions of layers"},
        ),
        png=f"{BUDGET}/interactions.png",
    params:
        sources=sources("plot_interactions.py"),
    log:
        f"{BUDGET}/interactions.svg.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/plot_interactions.py"


rule plot_history:
    """Draws the course of the pruned model's training."""
    input:
        history=f"{RECIPE}/history.parquet",
        before=trained_from,
    output:
        svg=report(
            f"{RECIPE}/history.svg",
            caption="../report/history.rst",
            category="Trainings",
            labels=lambda wildcards: {"training": f"{wildcards.model}: {sharing(wildcards)}"},
        ),
        png=f"{RECIPE}/history.png",
    params:
        sources=sources("plot_history.py"),
    log:
        f"{RECIPE}/history.svg.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/plot_history.py"


use rule plot_history as plot_dense_history with:
    """Draws the course of the dense model's training."""
    input:
        history=f"{MODEL}/dense_history.parquet",
        before=[],
    output:
        svg=report(
            f"{MODEL}/dense_history.svg",
            caption="../report/history.rst",
            category="Trainings",
            labels={"training": "{model}: dense, on {dataset}"},
        ),
        png=f"{MODEL}/dense_history.png",
    log:
        f"{MODEL}/dense_history.svg.log",
